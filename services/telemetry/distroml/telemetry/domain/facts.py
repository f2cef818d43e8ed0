"""What telemetry takes from the public events of the other services, in its own words. Times are Unix milliseconds."""

from __future__ import annotations

import msgspec


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Root of all facts."""

    at_ms: int


class Submitted(Fact, frozen=True, kw_only=True):
    """A job came to be."""

    name: str
    project: str
    command: tuple[str, ...]
    min_workers: int
    max_workers: int
    priority: int
    compress: str = ""
    trace_id: str = ""


class StateChanged(Fact, frozen=True, kw_only=True):
    """The job is in another state; `generation`, `attempt` and `workers` are 0 where the event says nothing of them."""

    state: str
    reason: str = ""
    message: str = ""
    category: str = ""
    attempt: int = 0
    generation: int = 0
    workers: int = 0
    nodes: tuple[str, ...] = ()


class Resized(Fact, frozen=True, kw_only=True):
    """Another range of workers was asked for, or given."""

    min_workers: int = 0
    max_workers: int = 0
    workers: int = 0


class PriorityChanged(Fact, frozen=True, kw_only=True):
    """The job stands elsewhere in the queue."""

    priority: int


class FailureCounted(Fact, frozen=True, kw_only=True):
    """The scheduler took a failure off the job's budget."""

    category: str


class Progressed(Fact, frozen=True, kw_only=True):
    """Coarse progress as the scheduler knows it."""

    step: int
    total_steps: int


class GenerationOpened(Fact, frozen=True, kw_only=True):
    """A new member set is being agreed."""

    number: int
    attempt: int
    reason: str


class MemberRow(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's place in a generation."""

    worker: str
    node: str
    rank: int
    local_rank: int


class GenerationFormed(Fact, frozen=True, kw_only=True):
    """The member set is agreed."""

    number: int
    world_size: int
    members: tuple[MemberRow, ...]
    mesh: tuple[tuple[str, int], ...]


class MemberLost(Fact, frozen=True, kw_only=True):
    """A node's workers are gone from a generation."""

    generation: int
    node: str
    workers: tuple[str, ...]
    cause: str


class GenerationBroken(Fact, frozen=True, kw_only=True):
    """The generation cannot go on."""

    number: int
    cause: str
    worker: str
    rank: int
    category: str
    message: str


class Closed(Fact, frozen=True, kw_only=True):
    """Rendezvous is done with the attempt."""

    outcome: str


class WorkerStarted(Fact, frozen=True, kw_only=True):
    """A process of a worker began."""

    worker: str
    generation: int
    rank: int
    pid: int
    node: str
    start: str
    seconds: float
    why_cold: str


class WorkerExited(Fact, frozen=True, kw_only=True):
    """A process of a worker ended."""

    worker: str
    generation: int
    rank: int
    code: int
    signal: int
    category: str
    message: str
    last_step: int
    expected: bool


class WorkerTrouble(Fact, frozen=True, kw_only=True):
    """A worker hangs or computes what is no number."""

    worker: str
    generation: int
    rank: int
    what: str
    step: int


class StepSeen(Fact, frozen=True, kw_only=True):
    """A step worth an event."""

    generation: int
    step: int
    why: str


class PlanSeen(Fact, frozen=True, kw_only=True):
    """The plan that a generation trains with, in one line, and what is predicted of it (0: nothing).

    `mfu` is the share of the devices' peak that the model's own operations use.
    """

    generation: int
    plan: str
    step_seconds: float
    peak_bytes: int
    mfu: float = 0.0


class PlanMeasured(Fact, frozen=True, kw_only=True):
    """What the plan turned out to cost over `steps` steps; 0 is not known."""

    generation: int
    steps: int
    step_seconds: float
    peak_bytes: int
    verdict: str
    message: str


class SumsChosen(Fact, frozen=True, kw_only=True):
    """By which algorithm a generation sums gradients of which size, in words; empty where there is one way only."""

    generation: int
    sums: str


class SchemeChanged(Fact, frozen=True, kw_only=True):
    """All `buckets` of gradients, of which `bucket` is the first, travel in another way from step `from_step` on."""

    generation: int
    bucket: int
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int
    buckets: tuple[int, ...]
    place: str = ""


class CompressionAdvised(Fact, frozen=True, kw_only=True):
    """What `compress: auto` would gain a generation; seconds of one step."""

    generation: int
    step: int
    step_s: float
    exposed_s: float
    predicted_s: float
    faster: float
    schemes: str


class SaveSeen(Fact, frozen=True, kw_only=True):
    """A save was opened, committed or failed: `state` is `saving`, `committed` or `failed`."""

    save_id: str
    step: int
    generation: int
    state: str
    manifest_hash: str = ""
    bytes_total: int = 0
    bytes_written: int = 0
    bytes_reused: int = 0
    save_s: float = 0.0
    message: str = ""


class CheckpointMarked(Fact, frozen=True, kw_only=True):
    """A committed checkpoint was `verified`, found `damaged` or `deleted`."""

    step: int
    manifest_hash: str
    state: str
    message: str = ""


JobFact = (
    Submitted
    | StateChanged
    | Resized
    | PriorityChanged
    | FailureCounted
    | Progressed
    | GenerationOpened
    | GenerationFormed
    | MemberLost
    | GenerationBroken
    | Closed
    | WorkerStarted
    | WorkerExited
    | WorkerTrouble
    | StepSeen
    | PlanSeen
    | PlanMeasured
    | SumsChosen
    | SchemeChanged
    | CompressionAdvised
    | SaveSeen
    | CheckpointMarked
)

MeteredFact = GenerationFormed | GenerationBroken | PlanSeen | SchemeChanged | SaveSeen
"""What is counted for Prometheus."""
