"""Lists, their pages, the queue and its reasons, and bundles of code."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import fresh_id
from tests.contract.calls import drained, fields_of, refused, until
from tests.contract.scheduler.conftest import Scheduler


async def pages(scheduler: Scheduler, **request: Any) -> AsyncIterator[pb.ListJobsResponse]:
    token = ""
    while True:
        page = await scheduler.jobs.ListJobs(pb.ListJobsRequest(project=scheduler.project, page_token=token, **request))
        yield page
        token = page.next_page_token
        if not token:
            return


async def test_pages_are_complete_and_newest_first_whatever_happens_between_them(scheduler: Scheduler) -> None:
    ids = [(await scheduler.submit(f"j{index}")).id for index in range(7)]
    last = await scheduler.get(ids[-1])
    found: list[pb.Job] = []
    async for page in pages(scheduler, page_size=3, min_position=last.position):
        assert len(page.jobs) <= 3
        assert page.position
        found += page.jobs
        # The job that the token stands for ends, and another one comes in front: the pages after it stay the same.
        await scheduler.jobs.CancelJob(pb.CancelJobRequest(job=page.jobs[-1].id))
        await scheduler.submit("late")
    assert sorted(job.id for job in found) == sorted(ids)
    submitted = [job.submitted_at.ToMilliseconds() for job in found]
    assert submitted == sorted(submitted, reverse=True)


async def test_lists_are_filtered(scheduler: Scheduler) -> None:
    one, two = await scheduler.submit("one"), await scheduler.submit("two")
    paused = await scheduler.jobs.PauseJob(pb.PauseJobRequest(job=one.id))

    async def ids(**request: Any) -> set[str]:
        request = {"project": scheduler.project, "min_position": paused.position, **request}
        return {job.id for job in (await scheduler.jobs.ListJobs(pb.ListJobsRequest(**request))).jobs}

    assert await ids() == {one.id, two.id}
    assert await ids(states=[pb.JOB_STATE_PAUSED]) == {one.id}
    assert await ids(states=[pb.JOB_STATE_PAUSED, pb.JOB_STATE_QUEUED]) == {one.id, two.id}
    assert await ids(project=fresh_id("project")) == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [("page_size", -1), ("page_token", "!!"), ("page_token", "bm9uc2Vuc2U="), ("min_position", "x"),
     ("min_position", "another-log:1.0")],
)  # fmt: skip
async def test_wrong_questions_are_refused(scheduler: Scheduler, field: str, value: Any) -> None:
    with refused("INVALID_ARGUMENT", "InvalidArgument") as caught:
        await scheduler.jobs.ListJobs(pb.ListJobsRequest(**{field: value}))
    assert fields_of(caught) == {field}


async def test_a_position_that_never_comes_is_waited_for_less_long_than_the_caller_waits(scheduler: Scheduler) -> None:
    position = f"{scheduler.service.events.log_id}:999999999.0"
    with refused("UNAVAILABLE", "NotYet") as caught:
        await scheduler.jobs.ListJobs(pb.ListJobsRequest(min_position=position), timeout=2)
    assert caught.value.metadata["position"]


async def test_the_queue_says_why_each_job_waits_and_explain_what_to_do(scheduler: Scheduler) -> None:
    huge = await scheduler.submit("huge", priority=9)
    small = await scheduler.submit("small", workers=150, priority=8)

    async def settled() -> list[pb.QueueEntry]:
        entries = (await scheduler.jobs.GetQueue(pb.GetQueueRequest())).entries
        own = [entry for entry in entries if entry.job in (huge.id, small.id)]
        return own if len(own) == 2 and all(entry.reason != "Evaluating" for entry in own) else []

    entries = await until(settled, "both jobs wait in the queue")
    assert [(entry.job, entry.name, entry.priority) for entry in entries] == [
        (huge.id, "huge", 9),
        (small.id, "small", 8),
    ]
    assert entries[0].index < entries[1].index
    assert {entry.reason for entry in entries} <= {"NoNodes", "ExceedsCapacity"}
    answer = await scheduler.jobs.ExplainJob(pb.ExplainJobRequest(job=small.id))
    assert (answer.job.id, answer.reason, answer.queue_index) == (small.id, entries[1].reason, entries[1].index)
    assert answer.message
    assert answer.next_steps
    assert any("submitted by ann" in line for line in answer.history)


async def put(scheduler: Scheduler, data: bytes, *, sha256: str, size: int | None = None) -> pb.PutBundleResponse:
    async def messages() -> AsyncIterator[pb.PutBundleRequest]:
        yield pb.PutBundleRequest(sha256=sha256, size_bytes=len(data) if size is None else size)
        for start in range(0, len(data), 1000):
            yield pb.PutBundleRequest(data=data[start : start + 1000])

    return await scheduler.jobs.PutBundle(messages())


async def test_a_bundle_goes_in_once_and_comes_out(scheduler: Scheduler) -> None:
    data = fresh_id("code").encode() + bytes(range(256)) * 20
    sha256 = hashlib.sha256(data).hexdigest()
    with refused("NOT_FOUND", "NoSuchBundle"):
        await drained(scheduler.jobs.GetBundle(pb.GetBundleRequest(sha256=sha256)))
    for size in (None, 3, 9000):
        with refused("INVALID_ARGUMENT", "BundleDamaged"):
            await put(scheduler, data[:-1] + b"?", sha256=sha256, size=size)
    assert scheduler.service.objects.head(f"bundles/{sha256}") is None
    answers = [await put(scheduler, data, sha256=sha256) for _ in range(2)]
    assert [(answer.sha256, answer.existed) for answer in answers] == [(sha256, False), (sha256, True)]
    blocks = await drained(scheduler.jobs.GetBundle(pb.GetBundleRequest(sha256=sha256)))
    assert b"".join(block.data for block in blocks) == data
    assert (await scheduler.submit(bundle=sha256)).spec.bundle == sha256


async def test_bundles_that_cannot_be(scheduler: Scheduler) -> None:
    with refused("INVALID_ARGUMENT", "InvalidArgument") as path:
        await drained(scheduler.jobs.GetBundle(pb.GetBundleRequest(sha256="../../etc/passwd")))
    with refused("INVALID_ARGUMENT", "InvalidArgument") as empty:
        await put(scheduler, b"", sha256="ab" * 32)
    assert (fields_of(path), fields_of(empty)) == ({"sha256"}, {"size_bytes"})
    with refused("RESOURCE_EXHAUSTED", "BundleTooLarge") as large:
        await put(scheduler, b"", sha256="ab" * 32, size=1 << 40)
    assert int(large.value.metadata["cap_bytes"]) < 1 << 40
