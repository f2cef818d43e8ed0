"""The domain's values as messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, cast

from google.protobuf.timestamp_pb2 import Timestamp

from distroml.api.common.v1 import common_pb2
from distroml.api.scheduler.v1 import jobs_pb2, nodes_pb2
from distroml.observability import trace
from distroml.rpc.conversion import compile_converter
from distroml.scheduler.domain.desired import DesiredAttempt
from distroml.scheduler.domain.explain import Explanation
from distroml.scheduler.domain.job import Job, JobState
from distroml.scheduler.domain.node import Node
from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement, Slot, gang_size

_SPEC: Final = compile_converter(JobSpec, jobs_pb2.JobSpec)

STATES: Final[Mapping[JobState, jobs_pb2.JobState.ValueType]] = {
    state: jobs_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState if state is not JobState.NEW
}


def spec_of(message: jobs_pb2.JobSpec) -> JobSpec:
    """What a request asks for, as it stands there: defaults are not filled in."""
    return cast(JobSpec, _SPEC.to_dataclass(message))


def spec_message(spec: JobSpec) -> jobs_pb2.JobSpec:
    """The specification as a message."""
    return cast(jobs_pb2.JobSpec, _SPEC.to_message(spec))


def category_of(number: int) -> FailureCategory:
    """A category; one that this release does not know is unspecified."""
    try:
        name = common_pb2.FailureCategory.Name(cast("common_pb2.FailureCategory.ValueType", number))
    except ValueError:
        return FailureCategory.UNSPECIFIED
    return FailureCategory[name.removeprefix("FAILURE_CATEGORY_")]


def category_message(category: FailureCategory) -> common_pb2.FailureCategory.ValueType:
    """The category as a message."""
    return common_pb2.FailureCategory.Value(f"FAILURE_CATEGORY_{category.name}")


def timestamp(at_ms: int) -> Timestamp | None:
    """Unix milliseconds as a message; None for 0, which stands for never."""
    if not at_ms:
        return None
    found = Timestamp()
    found.FromMilliseconds(at_ms)
    return found


def placement_messages(placement: Iterable[Placement]) -> list[jobs_pb2.Placement]:
    """A gang as messages."""
    return [jobs_pb2.Placement(node=part.node, slots=part.slots) for part in placement]


def resource_name(job: Job) -> str:
    """`projects/{project}/jobs/{id}`."""
    return f"projects/{job.spec.project}/jobs/{job.id}"


def job_message(job: Job, version: int, position: str, explanation: Explanation) -> jobs_pb2.Job:
    """A job at a version, with the reason of its state."""
    progressed = job.step or job.total_steps
    return jobs_pb2.Job(
        name=resource_name(job),
        id=job.id,
        spec=spec_message(job.spec),
        state=STATES[job.state],
        reason=explanation.reason,
        message=explanation.message,
        version=version,
        position=position,
        submitted_at=timestamp(job.submitted_at_ms),
        started_at=timestamp(job.started_at_ms),
        finished_at=timestamp(job.finished_at_ms),
        actor=job.actor,
        generation=job.generation,
        attempt=job.attempt,
        failures=job.failures,
        preemptions=job.preemptions,
        placement=placement_messages(job.placement),
        progress=(
            jobs_pb2.Progress(step=job.step, total_steps=job.total_steps, at=timestamp(job.progressed_at_ms))
            if progressed
            else None
        ),
        category=category_message(job.category),
        target_workers=job.spec.workers.max if job.resizing or not job.placement else gang_size(job.placement),
        trace_id=context.trace_id if (context := trace.parse(job.traceparent)) else "",
    )


def node_message(node: Node, held: Mapping[tuple[str, str], str]) -> jobs_pb2.Node:
    """A node, each slot with the job that holds it."""
    return jobs_pb2.Node(
        id=node.id,
        state=jobs_pb2.NodeState.Value(f"NODE_STATE_{node.state.name}"),
        address=node.address,
        slots=[
            jobs_pb2.Slot(id=slot.id, kind=slot.kind, device=slot.device, job=held.get((node.id, slot.id), ""))
            for slot in node.slots
        ],
        since=timestamp(node.since_ms),
        labels=node.labels,
    )


def slots_of(messages: Iterable[jobs_pb2.Slot]) -> tuple[Slot, ...]:
    """The slots that an agent names."""
    return tuple(Slot(message.id, message.kind or "cpu", message.device) for message in messages)


def desired_message(revision: int, attempts: Iterable[DesiredAttempt]) -> nodes_pb2.DesiredState:
    """A node's whole desired state."""
    return nodes_pb2.DesiredState(revision=revision, attempts=[_attempt_message(attempt) for attempt in attempts])


def _attempt_message(attempt: DesiredAttempt) -> nodes_pb2.DesiredAttempt:
    stop = attempt.stop
    return nodes_pb2.DesiredAttempt(
        job=attempt.job,
        attempt=attempt.attempt,
        spec=spec_message(attempt.spec),
        slots=attempt.slots,
        gang=[nodes_pb2.GangMember(node=member.node, workers=member.workers) for member in attempt.gang],
        stop=(
            nodes_pb2.StopOrder(reason=stop.reason, grace_s=stop.grace_s, checkpoint=stop.checkpoint) if stop else None
        ),
        failures_left=attempt.failures_left,
        traceparent=attempt.traceparent,
    )
