from __future__ import annotations

import asyncio

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.api.common.v1 import replay_pb2
from distroml.manifest import Keys
from services.checkpoint.tests.conftest import JOB, Plane, Start, eventually, refused, save
from services.checkpoint.tests.workers import Workers, loadable

STREAM = f"checkpoint/job/{JOB}"


async def test_retention_removes_old_checkpoints_and_nothing_that_newer_ones_need(plane: Plane):
    workers = Workers(plane.objects)
    hashes = [await save(plane, workers, step) for step in (10, 20, 30, 40)]

    async def collected() -> bool:
        listed = (await plane.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=JOB))).checkpoints
        keys = [info.key for info in plane.objects.list(Keys(JOB).root)]
        return [c.state for c in listed] == ["Committed", "Committed", "Deleted", "Deleted"] and (
            Keys(JOB).manifest(hashes[1]) not in keys
        )

    await eventually(collected)
    for sha in hashes[2:]:
        # The frozen tensors still lie in the packs of the first save.
        assert loadable(plane.objects, JOB, sha)["model.frozen1"] == b"frozen01"

    async def second_save_gone() -> bool:
        return not plane.objects.list(Keys(JOB).data_of("s0000000002"))

    await eventually(second_save_gone)
    assert not plane.objects.list(f"{Keys(JOB).root}shards/s0000000002/")


async def test_a_pinned_checkpoint_survives_until_its_pin_is_removed(plane: Plane):
    workers = Workers(plane.objects)
    first = await save(plane, workers, 10, keep=1)
    pin = pb.PinCheckpointRequest(job=JOB, step=10, ttl_s=3600, owner="me", request_id="req-1")
    assert (await plane.stub.PinCheckpoint(pin)).checkpoint.pinned
    assert (await plane.stub.PinCheckpoint(pin)).checkpoint.pinned
    for step in (20, 30):
        await save(plane, workers, step, keep=1)
    await asyncio.sleep(0.2)
    assert loadable(plane.objects, JOB, first)
    assert (await refused(plane.stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(job=JOB, step=10)))).reason == "Pinned"
    await plane.stub.PinCheckpoint(pb.PinCheckpointRequest(job=JOB, step=10, ttl_s=0, owner="me"))
    await plane.stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(job=JOB, step=10, request_id="req-2"))

    async def gone() -> bool:
        return plane.objects.head(Keys(JOB).manifest(first)) is None

    await eventually(gone)


async def test_damage_is_found_named_and_fallen_back_from(plane: Plane):
    workers = Workers(plane.objects)
    await save(plane, workers, 10, keep=3)
    second = await save(plane, workers, 20, keep=3)
    assert (await plane.stub.VerifyCheckpoint(pb.VerifyCheckpointRequest(job=JOB, step=20))).sound
    own = next(k.key for k in plane.objects.list(Keys(JOB).data) if "s0000000002/r0" in k.key)
    data = plane.objects.get(own)
    plane.objects.put(own, bytes([data[0] ^ 4]) + data[1:])
    verdict = await plane.stub.VerifyCheckpoint(pb.VerifyCheckpointRequest(job=JOB, step=20))
    assert not verdict.sound
    assert own in verdict.damaged[0]
    latest = (await plane.stub.GetLatest(pb.GetLatestRequest(job=JOB))).checkpoint
    assert latest.step == 10
    assert loadable(plane.objects, JOB, latest.manifest_hash)
    listed = (await plane.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=JOB))).checkpoints
    assert [c.state for c in listed] == ["Damaged", "Committed"]
    assert own in listed[0].message
    # What is saved next builds on what is sound.
    opened = await plane.stub.BeginSave(workers.begin(30))
    assert opened.base_manifest_hash == latest.manifest_hash != second


async def test_damage_of_a_shared_chunk_sets_aside_every_checkpoint_that_needs_it(plane: Plane):
    workers = Workers(plane.objects)
    await save(plane, workers, 10, keep=3)
    second = await save(plane, workers, 20, keep=3)
    pack = next(k.key for k in plane.objects.list(Keys(JOB).data) if "s0000000001/r0" in k.key)
    from distroml.manifest import chunk_hash

    report = pb.ReportCorruptionRequest(
        job=JOB, manifest_hash=second, object_key=pack, chunk_hash=chunk_hash(b"frozen00"), message="flipped"
    )
    assert not (await plane.stub.ReportCorruption(report)).HasField("checkpoint")
    listed = (await plane.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=JOB))).checkpoints
    assert [c.state for c in listed] == ["Damaged", "Damaged"]


async def test_a_lost_manifest_is_set_aside_before_anything_is_removed(plane: Plane):
    workers = Workers(plane.objects)
    first = await save(plane, workers, 10, keep=3)
    second = await save(plane, workers, 20, keep=3)
    plane.catalogues._objects._reaches.clear()
    plane.objects.delete(Keys(JOB).manifest(first))
    assert await plane.catalogues.sweep(JOB) == 0
    listed = (await plane.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=JOB))).checkpoints
    assert [c.state for c in listed] == ["Committed", "Damaged"]
    await plane.catalogues.sweep(JOB)
    assert loadable(plane.objects, JOB, second)


async def test_the_catalogue_of_a_job_that_ended_retires_and_its_checkpoints_stay_as_they_were(start: Start):
    plane = await start(retire_after_s=1)
    workers = Workers(plane.objects)
    await plane.fence(1)
    hashes = [await save(plane, workers, step) for step in (10, 20, 30)]
    await plane.say(f"rendezvous/job/{JOB}", "rendezvous.generation.GenerationOpened")
    await plane.stub.PinCheckpoint(pb.PinCheckpointRequest(job=JOB, step=30, ttl_s=3600, owner="me"))
    asked = pb.ListCheckpointsRequest(job=JOB)

    async def collected() -> bool:
        return [c.state for c in (await plane.stub.ListCheckpoints(asked)).checkpoints][-1] == "Deleted"

    await eventually(collected)
    before = await plane.stub.ListCheckpoints(asked)

    async def retired() -> bool:
        return not await plane.events.streams("checkpoint/job/")

    await plane.say(f"scheduler/job/{JOB}", "scheduler.job.Submitted")
    await plane.events.retire(f"scheduler/job/{JOB}", version=1)
    await eventually(retired)
    assert not (await plane.events.parts("state/checkpoint/"))[0]
    assert await plane.stub.ListCheckpoints(asked) == before
    latest = (await plane.stub.GetLatest(pb.GetLatestRequest(job=JOB))).checkpoint
    assert (latest.step, latest.manifest_hash, latest.pinned) == (30, hashes[2], True)
    assert loadable(plane.objects, JOB, hashes[2])["model.w1"] == b"%08d" % 301
    verified = [one async for one in plane.replay.Verify(replay_pb2.VerifyRequest(job=JOB))]
    assert [(one.version, list(one.differences)) for one in verified] == [(await plane.events.version(STREAM), [])]

    # Rendezvous takes the fence away with its own stream. A worker that nobody could stop saves nothing after that.
    entry = await plane.keys.get(f"fences/{JOB}")
    assert entry is not None
    await plane.keys.delete(f"fences/{JOB}", expected=entry.revision)
    assert (await refused(plane.stub.BeginSave(workers.begin(40, 2)))).reason == "StaleGeneration"
    assert await retired()

    # What a person does to it makes it live for a while, whole.
    await plane.stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(job=JOB, step=20))

    async def swept() -> bool:
        return plane.objects.head(Keys(JOB).manifest(hashes[1])) is None

    await eventually(swept)
    await eventually(retired)
    assert loadable(plane.objects, JOB, hashes[2])["model.frozen0"] == b"frozen00"
