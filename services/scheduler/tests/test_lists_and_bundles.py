"""Lists and bundles, call by call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.rpc import RemoteError


def refused(code: str, reason: str) -> Any:
    """`pytest.raises` for a status and a reason."""

    def check(error: RemoteError) -> bool:
        assert error.status is getattr(grpc.StatusCode, code), error
        assert error.reason == reason, error
        return True

    return pytest.raises(RemoteError, check=check)


# ---- lists


async def test_pages_are_complete_and_newest_first(world: Any):
    ids = [(await world.submit(f"j{index}")).id for index in range(7)]
    last = await world.get(ids[-1])
    found: list[str] = []
    token = ""
    while True:
        page = await world.jobs.ListJobs(pb.ListJobsRequest(page_size=3, page_token=token, min_position=last.position))
        assert len(page.jobs) <= 3
        found += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert sorted(found) == sorted(ids)
    submitted = [(await world.get(id_)).submitted_at.ToMilliseconds() for id_ in found]
    assert submitted == sorted(submitted, reverse=True)


async def test_lists_are_filtered(world: Any):
    one, two = await world.submit("one"), await world.submit("two", project="lab")
    paused = await world.jobs.PauseJob(pb.PauseJobRequest(job=one.id))

    async def ids(**request: Any) -> list[str]:
        response = await world.jobs.ListJobs(pb.ListJobsRequest(min_position=paused.position, **request))
        return [job.id for job in response.jobs]

    assert await ids(project="lab") == [two.id]
    assert await ids(states=[pb.JOB_STATE_PAUSED]) == [one.id]
    assert await ids(project="lab", states=[pb.JOB_STATE_PAUSED]) == []


@pytest.mark.parametrize(
    "request_", [{"page_size": -1}, {"page_token": "!!"}, {"min_position": "x"}, {"min_position": "log-x:1.0"}]
)
async def test_wrong_questions_are_refused(world: Any, request_: dict[str, Any]):
    with refused("INVALID_ARGUMENT", "InvalidArgument"):
        await world.jobs.ListJobs(pb.ListJobsRequest(**request_))


async def test_a_position_that_never_comes_is_waited_for_only_so_long(world: Any):
    position = f"{world.events.log_id}:999999.0"
    with refused("UNAVAILABLE", "NotYet"):
        await world.jobs.ListJobs(pb.ListJobsRequest(min_position=position), timeout=0.5)


async def test_old_finished_jobs_leave_the_list_and_are_still_found(world_of: Any):
    world = world_of(finished_kept=2)
    await world.start()
    try:
        ids = [(await world.submit(f"j{index}")).id for index in range(4)]
        for id_ in ids:
            last = await world.jobs.CancelJob(pb.CancelJobRequest(job=id_))
        page = await world.jobs.ListJobs(pb.ListJobsRequest(min_position=last.position))
        assert {job.id for job in page.jobs} == set(ids[2:])
        assert (await world.get(ids[0])).state == pb.JOB_STATE_CANCELLED
    finally:
        await world.stop()


# ---- bundles


async def put(world: Any, data: bytes, *, sha256: str, size: int | None = None) -> pb.PutBundleResponse:
    async def messages() -> AsyncIterator[pb.PutBundleRequest]:
        yield pb.PutBundleRequest(sha256=sha256, size_bytes=len(data) if size is None else size)
        for start in range(0, len(data), 1000):
            yield pb.PutBundleRequest(data=data[start : start + 1000])

    return await world.jobs.PutBundle(messages())


async def test_a_bundle_goes_in_and_comes_out(world: Any, sha256: Any):
    data = bytes(range(256)) * 20
    assert not (await put(world, data, sha256=sha256(data))).existed
    assert (await put(world, data, sha256=sha256(data))).existed
    blocks = [response.data async for response in world.jobs.GetBundle(pb.GetBundleRequest(sha256=sha256(data)))]
    assert b"".join(blocks) == data
    assert (await world.submit(bundle=sha256(data))).spec.bundle == sha256(data)


@pytest.mark.parametrize("size", [None, 3, 9000])
async def test_a_damaged_bundle_is_not_stored(world: Any, sha256: Any, size: int | None):
    other = sha256(b"other")
    with refused("INVALID_ARGUMENT", "BundleDamaged"):
        await put(world, b"x" * 5000, sha256=other, size=size)
    assert world.objects.head(f"bundles/{other}") is None


async def test_a_bundle_past_the_cap_is_refused_before_its_bytes_are_taken(world_of: Any, sha256: Any):
    world = world_of(bundle_cap_bytes=1000)
    await world.start()
    try:
        with refused("RESOURCE_EXHAUSTED", "BundleTooLarge") as caught:
            await put(world, b"x" * 1001, sha256=sha256(b"x" * 1001))
        assert caught.value.metadata["cap_bytes"] == "1000"
    finally:
        await world.stop()


async def test_bundles_that_are_not_there(world: Any, sha256: Any):
    with refused("NOT_FOUND", "NoSuchBundle"):
        async for _ in world.jobs.GetBundle(pb.GetBundleRequest(sha256=sha256(b"?"))):
            pass
    with refused("INVALID_ARGUMENT", "InvalidArgument"):
        async for _ in world.jobs.GetBundle(pb.GetBundleRequest(sha256="../../etc/passwd")):
            pass
