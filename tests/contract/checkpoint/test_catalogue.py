"""Saves and checkpoints, call by call: what agents and users get, and what is refused and why."""

from __future__ import annotations

import asyncio

import pytest

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.events import fresh_id
from distroml.manifest import Keys
from services.checkpoint.tests.workers import Workers, loadable
from tests.contract.calls import fields_of, refused, until
from tests.contract.checkpoint.conftest import Catalogue


async def test_a_save_is_a_checkpoint_with_its_last_shard_whoever_asks_how_often(catalogue: Catalogue) -> None:
    stub, workers, job = catalogue.stub, catalogue.workers, catalogue.job
    latest = pb.GetLatestRequest(job=job)
    assert not (await stub.GetLatest(latest)).HasField("checkpoint")
    # Every rank's agent opens the save; it is one.
    opened = await asyncio.gather(*(stub.BeginSave(workers.begin(10)) for _ in range(3)))
    assert len({one.save_id for one in opened}) == 1
    assert opened[0].base_manifest_hash == ""
    assert opened[0].object_prefix == Keys(job).data_of(opened[0].save_id)
    first, last = (workers.write(rank, 10, opened[0]) for rank in range(2))
    for _ in range(2):
        answer = await stub.ReportShard(first)
        assert (answer.committed, answer.missing) == (False, 1)
    assert not (await stub.GetLatest(latest)).HasField("checkpoint")
    done = await stub.ReportShard(last)
    assert done.committed
    for again in (first, last):
        assert await stub.ReportShard(again) == done
    found = (await stub.GetLatest(latest)).checkpoint
    assert (found.job, found.project, found.step, found.generation) == (job, "p", 10, 1)
    assert (found.manifest_hash, found.shards, found.state) == (done.manifest_hash, 2, "Committed")
    assert (found.bytes_total, found.bytes_written, found.bytes_reused) == (32, 32, 0)
    assert loadable(catalogue.service.objects, job, done.manifest_hash)["model.w1"] == b"00000101"
    types = [one.type for one in await catalogue.service.written(f"checkpoint/job/{job}") if one.public]
    assert types == ["checkpoint.Begun", "checkpoint.Committed"]


async def test_what_did_not_change_is_taken_from_the_base(catalogue: Catalogue) -> None:
    base = await catalogue.save(10)
    opened = await catalogue.stub.BeginSave(catalogue.workers.begin(20))
    assert opened.base_manifest_hash == base
    for rank in range(2):
        answer = await catalogue.stub.ReportShard(catalogue.workers.write(rank, 20, opened))
    listed = (await catalogue.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=catalogue.job))).checkpoints
    assert [(one.step, one.bytes_written, one.bytes_reused) for one in listed] == [(20, 16, 16), (10, 32, 0)]
    for_step = pb.GetLatestRequest(job=catalogue.job, max_step=19)
    assert (await catalogue.stub.GetLatest(for_step)).checkpoint.manifest_hash == base
    verified = await catalogue.stub.VerifyCheckpoint(pb.VerifyCheckpointRequest(job=catalogue.job, step=20))
    assert (verified.sound, verified.chunks, verified.bytes, list(verified.damaged)) == (True, 4, 32, [])
    assert loadable(catalogue.service.objects, catalogue.job, answer.manifest_hash)["model.frozen0"] == b"frozen00"


async def test_a_generation_that_is_over_can_never_commit(catalogue: Catalogue) -> None:
    stub, workers, job = catalogue.stub, catalogue.workers, catalogue.job
    await catalogue.service.fence(job, 1)
    opened = await stub.BeginSave(workers.begin(10))
    await stub.ReportShard(workers.write(0, 10, opened))
    last = workers.write(1, 10, opened)
    await catalogue.service.fence(job, 2)
    for _ in range(2):
        with refused("FAILED_PRECONDITION", "StaleGeneration"):
            await stub.ReportShard(last)
    with refused("FAILED_PRECONDITION", "StaleGeneration"):
        await stub.BeginSave(workers.begin(20))
    with refused("FAILED_PRECONDITION", "StaleGeneration"):
        await stub.GetLatest(pb.GetLatestRequest(job=job, generation=1))
    assert not (await stub.GetLatest(pb.GetLatestRequest(job=job, generation=2))).HasField("checkpoint")
    ahead = Workers(catalogue.service.objects, job=job, generation=3)
    with refused("FAILED_PRECONDITION", "UnknownGeneration"):
        await stub.BeginSave(ahead.begin(20))


async def test_a_failed_rank_closes_the_save_for_all(catalogue: Catalogue) -> None:
    stub, workers, job = catalogue.stub, catalogue.workers, catalogue.job
    first = await catalogue.save(10)
    opened = await stub.BeginSave(workers.begin(20))
    other = workers.write(0, 20, opened)
    failed = pb.ReportSaveFailedRequest(job=job, generation=1, step=20, rank=1, message="no room on the device")
    for _ in range(2):
        await stub.ReportSaveFailed(failed)
    with refused("FAILED_PRECONDITION", "RankFailed") as caught:
        await stub.ReportShard(other)
    assert "no room on the device" in caught.value.message
    with refused("FAILED_PRECONDITION", "RankFailed"):
        await stub.BeginSave(workers.begin(20))
    assert (await stub.GetLatest(pb.GetLatestRequest(job=job))).checkpoint.manifest_hash == first
    types = [one.type for one in await catalogue.service.written(f"checkpoint/job/{job}")]
    assert types.count("checkpoint.SaveFailed") == 1


async def test_a_shard_that_is_not_what_was_said_fails_the_save(catalogue: Catalogue) -> None:
    opened = await catalogue.stub.BeginSave(catalogue.workers.begin(10))
    first, last = (catalogue.workers.write(rank, 10, opened) for rank in range(2))
    await catalogue.stub.ReportShard(first)
    data = catalogue.service.objects.get(last.shard_key)
    catalogue.service.objects.put(last.shard_key, bytes([data[0] ^ 1]) + data[1:])
    with refused("FAILED_PRECONDITION", "ShardDamaged"):
        await catalogue.stub.ReportShard(last)
    assert not (await catalogue.stub.GetLatest(pb.GetLatestRequest(job=catalogue.job))).HasField("checkpoint")


async def test_a_damaged_checkpoint_is_set_aside_and_the_next_best_named(catalogue: Catalogue) -> None:
    first, second = [await catalogue.save(step) for step in (10, 20)]
    report = pb.ReportCorruptionRequest(
        job=catalogue.job, manifest_hash=second, object_key="data/x", chunk_hash="ab" * 32, message="wrong bytes"
    )
    for _ in range(2):
        assert (await catalogue.stub.ReportCorruption(report)).checkpoint.manifest_hash == first
    listed = (await catalogue.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=catalogue.job))).checkpoints
    assert [(one.step, one.state) for one in listed] == [(20, "Damaged"), (10, "Committed")]
    types = [one.type for one in await catalogue.service.written(f"checkpoint/job/{catalogue.job}")]
    assert types.count("checkpoint.CorruptChunkFound") == 1


async def test_pins_keep_and_deleting_is_done_once(catalogue: Catalogue) -> None:
    stub, job = catalogue.stub, catalogue.job
    for step in (10, 20, 30):
        await catalogue.save(step)
    pin = pb.PinCheckpointRequest(job=job, step=10, ttl_s=3600, owner="ann", request_id=fresh_id("req"))
    for _ in range(2):
        pinned = (await stub.PinCheckpoint(pin)).checkpoint
        assert (pinned.step, pinned.pinned) == (10, True)
    with refused("ALREADY_EXISTS", "RequestIdReused"):
        await stub.PinCheckpoint(
            pb.PinCheckpointRequest(job=job, step=20, ttl_s=60, owner="ann", request_id=pin.request_id)
        )
    for step, reason in ((10, "Pinned"), (30, "NewestSound")):
        with refused("FAILED_PRECONDITION", reason):
            await stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(job=job, step=step))
    await stub.PinCheckpoint(pb.PinCheckpointRequest(job=job, step=10, ttl_s=0, owner="ann"))
    delete = pb.DeleteCheckpointRequest(job=job, step=10, request_id=fresh_id("req"))
    for _ in range(2):
        await stub.DeleteCheckpoint(delete)
    listed = (await stub.ListCheckpoints(pb.ListCheckpointsRequest(job=job))).checkpoints
    assert [(one.step, one.state) for one in listed] == [(30, "Committed"), (20, "Committed"), (10, "Deleted")]


async def test_no_call_takes_a_checkpoint_that_does_not_exist(catalogue: Catalogue) -> None:
    await catalogue.save(10)
    for call, request in (
        ("VerifyCheckpoint", pb.VerifyCheckpointRequest(job=catalogue.job, step=77)),
        ("DeleteCheckpoint", pb.DeleteCheckpointRequest(job=catalogue.job, step=77)),
        ("PinCheckpoint", pb.PinCheckpointRequest(job=catalogue.job, step=77, ttl_s=60, owner="ann")),
        ("ReportCorruption", pb.ReportCorruptionRequest(job=catalogue.job, manifest_hash="ab" * 32)),
    ):
        with refused("NOT_FOUND", "UnknownCheckpoint"):
            await getattr(catalogue.stub, call)(request)


async def test_pages_are_complete_whatever_is_saved_between_them(catalogue: Catalogue) -> None:
    for step in (10, 20, 30):
        await catalogue.save(step)
    steps, token = list[int](), ""
    while True:
        page = await catalogue.stub.ListCheckpoints(
            pb.ListCheckpointsRequest(job=catalogue.job, page_size=2, page_token=token)
        )
        assert len(page.checkpoints) <= 2
        steps += [one.step for one in page.checkpoints]
        if not (token := page.next_page_token):
            break
        await catalogue.save(40)
    assert steps == [30, 20, 10]
    assert not (await catalogue.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=fresh_id("job")))).checkpoints
    with refused("INVALID_ARGUMENT", "InvalidArgument") as garbage:
        await catalogue.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=catalogue.job, page_token="garbage"))
    assert fields_of(garbage) == {"page_token"}


async def test_retention_is_told_when_it_deletes(catalogue: Catalogue) -> None:
    for step in (10, 20, 30):
        await catalogue.save(step, keep=2)

    async def deleted() -> bool:
        listed = (await catalogue.stub.ListCheckpoints(pb.ListCheckpointsRequest(job=catalogue.job))).checkpoints
        return [(one.step, one.state) for one in listed] == [(30, "Committed"), (20, "Committed"), (10, "Deleted")]

    await until(deleted, "the oldest of three is deleted, where two are kept")
    types = [one.type for one in await catalogue.service.written(f"checkpoint/job/{catalogue.job}")]
    assert types.count("checkpoint.Deleted") == 1


WRONG = {
    "BeginSave": (
        pb.BeginSaveRequest(job="No Job", generation=-1, step=-1, keep=999),
        ["job", "generation", "step", "world_size", "keep"],
    ),
    "ReportShard": (
        pb.ReportShardRequest(job="No Job", generation=-1, step=-1, rank=5, world_size=2, shard_hash="x"),
        ["job", "generation", "step", "rank", "shard_hash", "shard_key"],
    ),
    "ReportSaveFailed": (pb.ReportSaveFailedRequest(job="No Job", rank=-1), ["job", "rank"]),
    "ReportCorruption": (
        pb.ReportCorruptionRequest(job="No Job", manifest_hash="x", chunk_hash="y"),
        ["job", "manifest_hash", "chunk_hash"],
    ),
    "PinCheckpoint": (
        pb.PinCheckpointRequest(job="No Job", ttl_s=-1, request_id="x" * 200),
        ["job", "ttl_s", "owner", "request_id"],
    ),
    "DeleteCheckpoint": (pb.DeleteCheckpointRequest(job="No Job", request_id="\n"), ["job", "request_id"]),
    "VerifyCheckpoint": (pb.VerifyCheckpointRequest(job="No Job"), ["job"]),
    "ListCheckpoints": (pb.ListCheckpointsRequest(job="No Job"), ["job"]),
    "GetLatest": (pb.GetLatestRequest(job="No Job"), ["job"]),
}


@pytest.mark.parametrize("call", WRONG)
async def test_every_wrong_field_is_named(catalogue: Catalogue, call: str) -> None:
    request, fields = WRONG[call]
    with refused("INVALID_ARGUMENT", "InvalidArgument") as caught:
        await getattr(catalogue.stub, call)(request)
    assert [field for field, _ in caught.value.violations] == fields
