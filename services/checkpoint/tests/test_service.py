"""The service inside: races, faults of the object store, restarts; the contract: `tests/contract/checkpoint`."""

from __future__ import annotations

import asyncio
import threading

import pytest
from grpc import StatusCode

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.api.common.v1 import replay_pb2
from distroml.checkpoint.adapters.codecs import PUBLIC
from distroml.checkpoint.domain import events
from distroml.manifest import Keys
from distroml.objectstore import ObjectStoreDown, ObjectStoreFull
from distroml.rpc.publicevents import check_codec
from services.checkpoint.tests.conftest import JOB, Plane, Start, eventually, refused, save
from services.checkpoint.tests.workers import Workers, loadable


async def test_the_fence_decides_in_the_commit_itself(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    """The generation opens after the last check and before the commit: the guard stops it."""
    await plane.fence(1)
    workers = Workers(plane.objects)
    opened = await plane.stub.BeginSave(workers.begin(10))
    await plane.stub.ReportShard(workers.write(0, 10, opened))
    objects = plane.catalogues._objects
    assemble = objects.assemble

    loop = asyncio.get_running_loop()

    def assemble_then_fence(*arguments):
        merged = assemble(*arguments)
        asyncio.run_coroutine_threadsafe(plane.fence(2), loop).result(10)
        return merged

    monkeypatch.setattr(objects, "assemble", assemble_then_fence)
    error = await refused(plane.stub.ReportShard(workers.write(1, 10, opened)))
    assert error.reason == "StaleGeneration"
    assert not (await plane.stub.GetLatest(pb.GetLatestRequest(job=JOB))).HasField("checkpoint")


async def test_a_failed_rank_closes_the_save_and_the_old_checkpoint_stays(plane: Plane):
    workers = Workers(plane.objects)
    first = await save(plane, workers, 10)
    opened = await plane.stub.BeginSave(workers.begin(20))
    other = workers.write(0, 20, opened)
    await plane.stub.ReportSaveFailed(
        pb.ReportSaveFailedRequest(job=JOB, generation=1, step=20, rank=1, message="no room on the device")
    )
    error = await refused(plane.stub.ReportShard(other))
    assert error.reason == "RankFailed"
    assert "no room on the device" in error.message
    assert (await plane.stub.GetLatest(pb.GetLatestRequest(job=JOB))).checkpoint.manifest_hash == first

    async def swept() -> bool:
        return not plane.objects.list(Keys(JOB).data_of(opened.save_id))

    await eventually(swept)
    assert loadable(plane.objects, JOB, first)


@pytest.mark.parametrize("damage", ["missing pack", "short pack", "flipped shard", "missing shard", "foreign pack"])
async def test_a_save_whose_objects_are_not_all_there_fails(plane: Plane, damage: str):
    workers = Workers(plane.objects)
    opened = await plane.stub.BeginSave(workers.begin(10))
    await plane.stub.ReportShard(workers.write(0, 10, opened))
    last = workers.write(1, 10, opened)
    pack = workers.written[-2]
    data = plane.objects.get(last.shard_key)
    if damage == "missing pack":
        plane.objects.delete(pack)
    elif damage == "short pack":
        plane.objects.put(pack, plane.objects.get(pack)[:-1])
    elif damage == "flipped shard":
        plane.objects.put(last.shard_key, bytes([data[0] ^ 1]) + data[1:])
    elif damage == "missing shard":
        plane.objects.delete(last.shard_key)
    else:
        from distroml.manifest import hash_of

        foreign = data.replace(pack.encode(), b"bundles/someones")
        last.shard_hash = hash_of(foreign)
        last.shard_key = Keys(JOB).shard(opened.save_id, 1, last.shard_hash)
        plane.objects.put("bundles/someones", b"x" * 16)
        plane.objects.put(last.shard_key, foreign)
    error = await refused(plane.stub.ReportShard(last))
    expected = {
        "missing pack": "ObjectMissing",
        "short pack": "ObjectMissing",
        "flipped shard": "ShardDamaged",
        "missing shard": "ShardDamaged",
        "foreign pack": "ForeignObject",
    }
    assert error.reason == expected[damage]
    assert not (await plane.stub.GetLatest(pb.GetLatestRequest(job=JOB))).HasField("checkpoint")
    assert plane.objects.head("bundles/someones") is not None or damage != "foreign pack"


async def test_many_ranks_report_at_once(plane: Plane):
    workers = Workers(plane.objects, world_size=48)
    opened = await asyncio.gather(*(plane.stub.BeginSave(workers.begin(10)) for _ in range(48)))
    reports = [workers.write(rank, 10, opened[0]) for rank in range(48)]
    answers = await asyncio.gather(*(plane.stub.ReportShard(report) for report in (*reports, *reports)))
    assert sum(answer.committed for answer in answers) >= 1
    answers = await asyncio.gather(*(plane.stub.ReportShard(report) for report in reports))
    assert {answer.manifest_hash for answer in answers if answer.committed} == {answers[0].manifest_hash}
    assert all(answer.committed for answer in answers)


async def test_a_commit_outlasts_the_call_that_began_it(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    workers = Workers(plane.objects)
    opened = await plane.stub.BeginSave(workers.begin(10))
    await plane.stub.ReportShard(workers.write(0, 10, opened))
    last = workers.write(1, 10, opened)
    objects, release = plane.catalogues._objects, threading.Event()
    assemble, calls = objects.assemble, []

    def slow(*arguments):
        calls.append(arguments)
        assert release.wait(20)
        return assemble(*arguments)

    monkeypatch.setattr(objects, "assemble", slow)
    for _ in range(2):
        assert (await refused(plane.stub.ReportShard(last, timeout=0.2))).is_transient
    release.set()
    assert (await plane.stub.ReportShard(last)).committed
    assert len(calls) == 1


async def test_no_room_for_the_manifest_fails_the_save(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    workers = Workers(plane.objects)
    first = await save(plane, workers, 10)
    store = plane.catalogues._objects._store
    put = store.put

    def full(key, data, **options):
        if "/manifests/" in key:
            raise ObjectStoreFull("no room")
        return put(key, data, **options)

    opened = await plane.stub.BeginSave(workers.begin(20))
    await plane.stub.ReportShard(workers.write(0, 20, opened))
    last = workers.write(1, 20, opened)
    monkeypatch.setattr(store, "put", full)
    assert (await refused(plane.stub.ReportShard(last))).reason == "StoreFull"
    monkeypatch.undo()
    assert (await plane.stub.GetLatest(pb.GetLatestRequest(job=JOB))).checkpoint.manifest_hash == first
    await save(plane, workers, 30)


async def test_an_object_store_that_does_not_answer_fails_nothing(plane: Plane, monkeypatch: pytest.MonkeyPatch):
    workers = Workers(plane.objects)
    opened = await plane.stub.BeginSave(workers.begin(10))
    await plane.stub.ReportShard(workers.write(0, 10, opened))
    last = workers.write(1, 10, opened)

    def down(key, **options):
        raise ObjectStoreDown("no answer")

    monkeypatch.setattr(plane.catalogues._objects._store, "get", down)
    error = await refused(plane.stub.ReportShard(last))
    assert error.status is StatusCode.UNAVAILABLE
    monkeypatch.undo()
    assert (await plane.stub.ReportShard(last)).committed


async def test_state_survives_a_restart_of_the_service(plane: Plane, start: Start):
    workers = Workers(plane.objects)
    opened = await plane.stub.BeginSave(workers.begin(10))
    await plane.stub.ReportShard(workers.write(0, 10, opened))
    await plane.service.drain()
    again = await start()
    assert (await again.stub.BeginSave(workers.begin(10))).save_id == opened.save_id
    done = await again.stub.ReportShard(workers.write(1, 10, opened))
    assert done.committed
    assert [a.differences for a in [x async for x in again.replay.Verify(replay_pb2.VerifyRequest())]] == [[]]


def test_events_and_their_messages_agree():
    common = {"at_ms": 1, "step": 2, "manifest_hash": "m"}
    samples = [
        events.Begun(
            at_ms=1,
            job="j",
            save_id="s",
            step=2,
            generation=3,
            world_size=4,
            base_manifest_hash="b",
            keep=5,
            project="p",
        ),
        events.Committed(
            **common,
            save_id="s",
            generation=3,
            shards=4,
            bytes_total=5,
            bytes_written=6,
            bytes_reused=7,
            save_s=8.5,
        ),
        events.SaveFailed(at_ms=1, save_id="s", step=2, generation=3, rank=-1, message="m", reason="r"),
        events.Verified(**common, chunks=3, bytes=4),
        events.CorruptChunkFound(**common, object_key="o", chunk_hash="c", message="x"),
        events.FellBack(at_ms=1, from_step=2, to_step=3, manifest_hash="m"),
        events.Deleted(**common, why="retention"),
    ]
    check_codec(PUBLIC, {type(sample): sample for sample in samples})
