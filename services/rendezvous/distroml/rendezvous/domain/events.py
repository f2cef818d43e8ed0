"""What can have happened on `rendezvous/job/<job>`.

The first group is public: each is the protobuf message of the same name. The second is private bookkeeping, small
and only on transitions: who joined, who is ready, who left, that a drain began.
"""

from __future__ import annotations

from dataclasses import dataclass

from distroml.rendezvous.domain.model import ExpectedMember, FailureCategory, Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOpened:
    """A newer generation is being formed; the commit raises the job's fence to `number`."""

    at_ms: int
    job: str
    number: int
    attempt: int
    reason: str
    expected: tuple[ExpectedMember, ...]
    min_workers: int
    failures_left: int
    join_timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFormed:
    """The member set is agreed."""

    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLost:
    """Workers no longer take part; where the lease expired, their whole node does not."""

    at_ms: int
    generation: int
    node: str
    workers: tuple[str, ...]
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationBroken:
    """The formed generation cannot go on. `worker` and `rank` name the first one lost, where one did it."""

    at_ms: int
    number: int
    cause: str
    worker: str
    rank: int
    category: FailureCategory
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The attempt is over for rendezvous; a newer attempt goes on with the generation's number."""

    at_ms: int
    generation: int
    outcome: str
    category: FailureCategory
    reason: str
    message: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted:
    """A worker process runs; `why_cold` says why no warm one served."""

    at_ms: int
    worker: str
    generation: int
    rank: int
    pid: int
    start: str
    node: str
    seconds: float
    why_cold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited:
    """A worker process ended; `expected` where the platform ended it."""

    at_ms: int
    worker: str
    generation: int
    rank: int
    code: int
    signal: int
    category: FailureCategory
    message: str
    last_step: int
    expected: bool
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HangDetected:
    """A worker showed no sign of progress for `silent_s`."""

    at_ms: int
    worker: str
    generation: int
    rank: int
    silent_s: float
    last_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NonFiniteDetected:
    """`what` (a loss, a gradient, a parameter) stopped being a number."""

    at_ms: int
    worker: str
    generation: int
    rank: int
    step: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChosen:
    """The plan that the generation trains with; JSON texts. All alternatives are an object named by its hash."""

    at_ms: int
    generation: int
    plan: str
    inputs: str
    prediction: str
    best: str
    alternatives_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMeasured:
    """What the generation's plan turned out to cost beside what was predicted; 0 is not known."""

    at_ms: int
    generation: int
    steps: int
    step_seconds: float
    peak_bytes_per_rank: int
    predicted_step_seconds: float
    predicted_peak_bytes_per_rank: int
    parts: str
    verdict: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksProbed:
    """What the links between the generation's workers do, `topology` as JSON; an older probe may be `reused`.

    `sums` is JSON: by which algorithm gradients of which size are summed, empty where there is one way only.
    """

    at_ms: int
    generation: int
    topology: str
    seconds: float
    reused: bool
    sums: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeChanged:
    """Buckets of gradients travel in another way from step `from_step` on; told in order of step and first bucket.

    `buckets` are all of them, `bucket` is the first; earlier releases told of `bucket` alone. `place` is the part of
    the model that they are of, empty where replicas have all of it.
    """

    at_ms: int
    generation: int
    bucket: int
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int
    buckets: tuple[int, ...] = ()
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionAdvised:
    """What compression would gain a generation that waits for communication; seconds of one step."""

    at_ms: int
    generation: int
    step: int
    step_seconds: float
    exposed_seconds: float
    predicted_step_seconds: float
    faster: float
    schemes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecorded:
    """A step worth an event; samples `[sample_from, sample_to)` of `epoch` were consumed."""

    at_ms: int
    generation: int
    step: int
    sample_from: int
    sample_to: int
    epoch: int
    loss: float
    fingerprint: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJoined:
    """A node takes part, or speaks through another agent or with other workers than before."""

    node: str
    agent_id: str
    workers: tuple[str, ...]
    store_endpoint: str
    address: str
    declared: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReady:
    """All workers of the node are ready for a generation newer than the newest formed one."""

    node: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeft:
    """The node's agent stopped its workers and takes part no longer."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBegun:
    """The formed generation is to be left at the next step, because the next one will have another gang."""

    number: int
    reason: str
    expected: tuple[ExpectedMember, ...]
    min_workers: int


PublicEvent = (
    GenerationOpened
    | GenerationFormed
    | MemberLost
    | GenerationBroken
    | Closed
    | WorkerStarted
    | WorkerExited
    | HangDetected
    | NonFiniteDetected
    | PlanChosen
    | PlanMeasured
    | LinksProbed
    | SchemeChanged
    | CompressionAdvised
    | StepRecorded
)
PrivateEvent = NodeJoined | NodeReady | NodeLeft | DrainBegun
Event = PublicEvent | PrivateEvent
