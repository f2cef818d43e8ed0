"""What telemetry takes from the public events of the other services, in its own words. Times are Unix milliseconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Root of all facts."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Fact):
    """A job came to be."""

    name: str
    project: str
    command: tuple[str, ...]
    min_workers: int
    max_workers: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Fact):
    """The job is in another state; `generation`, `attempt` and `workers` are 0 where the event says nothing of them."""

    state: str
    reason: str = ""
    message: str = ""
    category: str = ""
    attempt: int = 0
    generation: int = 0
    workers: int = 0
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized(Fact):
    """Another range of workers was asked for, or given."""

    min_workers: int = 0
    max_workers: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityChanged(Fact):
    """The job stands elsewhere in the queue."""

    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCounted(Fact):
    """The scheduler took a failure off the job's budget."""

    category: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed(Fact):
    """Coarse progress as the scheduler knows it."""

    step: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOpened(Fact):
    """A new member set is being agreed."""

    number: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRow:
    """One worker's place in a generation."""

    worker: str
    node: str
    rank: int
    local_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFormed(Fact):
    """The member set is agreed."""

    number: int
    world_size: int
    members: tuple[MemberRow, ...]
    mesh: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLost(Fact):
    """A node's workers are gone from a generation."""

    generation: int
    node: str
    workers: tuple[str, ...]
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationBroken(Fact):
    """The generation cannot go on."""

    number: int
    cause: str
    worker: str
    rank: int
    category: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Fact):
    """Rendezvous is done with the attempt."""

    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Fact):
    """A process of a worker began."""

    worker: str
    generation: int
    rank: int
    pid: int
    node: str
    start: str
    seconds: float
    why_cold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited(Fact):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTrouble(Fact):
    """A worker hangs or computes what is no number."""

    worker: str
    generation: int
    rank: int
    what: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeen(Fact):
    """A step worth an event."""

    generation: int
    step: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSeen(Fact):
    """The plan that a generation trains with, in one line, and what is predicted of it (0: nothing)."""

    generation: int
    plan: str
    step_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMeasured(Fact):
    """What the plan turned out to cost over `steps` steps; 0 is not known."""

    generation: int
    steps: int
    step_seconds: float
    peak_bytes: int
    verdict: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SumsChosen(Fact):
    """By which algorithm a generation sums gradients of which size, in words; empty where there is one way only."""

    generation: int
    sums: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeChanged(Fact):
    """A bucket of gradients travels in another way from step `from_step` on."""

    generation: int
    bucket: int
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionAdvised(Fact):
    """What `compress: auto` would gain a generation; seconds of one step."""

    generation: int
    step: int
    step_s: float
    exposed_s: float
    predicted_s: float
    faster: float
    schemes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSeen(Fact):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMarked(Fact):
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
