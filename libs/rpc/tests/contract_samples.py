"""Events as a domain has them, one of each class, and the codec between them and the contract."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from distroml.api.rendezvous.v1 import rendezvous_pb2
from distroml.api.scheduler.v1 import events_pb2
from distroml.events import Context, NewEvent, Position, Recorded
from distroml.rpc.publicevents import (
    PublicCodec,
)

Generation = NewType("Generation", int)


class Category(enum.Enum):
    EXCEPTION = "exception"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out of memory"
    HANG = "hang"
    SETUP = "setup"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    EXIT_CODE = "exit code"
    NON_FINITE = "non-finite"
    CORRUPTION = "corruption"
    RENDEZVOUS_TIMEOUT = "rendezvous timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRange:
    min: int
    max: int
    per_node: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    max_failures: int | None = None
    max_preemptions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    keep: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    name: str
    project: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    bundle: str = ""
    python: str = ""
    workers: WorkerRange
    priority: int = 0
    retry: RetryPolicy | None = None
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    grace_s: int = 30
    hang_timeout_s: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    packages: str = ""
    dataset: str = ""
    log_cap_bytes: int = 0
    compress: str = ""
    sync_every: int = 0
    backend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    job: str
    spec: Spec
    at_ms: int
    actor: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    at_ms: int
    category: Category | None
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    node: str
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    at_ms: int
    attempt: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecorded:
    at_ms: int
    generation: Generation
    step: int
    sample_from: int
    sample_to: int
    epoch: int
    loss: float
    fingerprint: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    worker: str
    node: str
    rank: int
    local_rank: int
    node_rank: int
    local_world_size: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Formed:
    job: str
    number: int
    world_size: int
    members: tuple[Member, ...]
    store_endpoint: str
    mesh: Mapping[str, int]
    at_ms: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFormed:
    generation: Formed


SPEC = Spec(
    name="gpt",
    project="default",
    command=("train.py", "--fast"),
    env={"A": "1"},
    workers=WorkerRange(min=1, max=2),
    retry=RetryPolicy(max_failures=0),
)
SAMPLES = {
    Submitted: Submitted(job="job-1", spec=SPEC, at_ms=5),
    Validated: Validated(at_ms=6),
    Admitted: Admitted(at_ms=7, attempt=1, placement=(Placement(node="n", slots=("cpu-0", "cpu-1")),)),
    Failed: Failed(at_ms=8, category=Category.OUT_OF_MEMORY, reason="WorkerFailed", message="é\x00"),
}
CODEC = PublicCodec[object](
    {
        "scheduler.job.Submitted": (Submitted, events_pb2.JobSubmitted, 1),
        "scheduler.job.Validated": (Validated, events_pb2.JobValidated, 1),
        "scheduler.job.Admitted": (Admitted, events_pb2.JobAdmitted, 1),
        "scheduler.job.Failed": (Failed, events_pb2.JobFailed, 1),
    }
)
STEPS = PublicCodec[StepRecorded]({"rendezvous.step.StepRecorded": (StepRecorded, rendezvous_pb2.StepRecorded, 1)})


def recorded(event: NewEvent) -> Recorded:
    context = Context(
        deployment="dep-1",
        project="default",
        actor="ann",
        causation_id="c",
        correlation_id="r",
        time_ms=1_700_000_000_123,
    )
    return Recorded(
        id=event.id,
        type=event.type,
        schema=event.schema,
        public=event.public,
        data=event.data,
        stream="scheduler/job/job-1",
        version=1,
        position=Position("dep-1", 4),
        context=context,
    )
