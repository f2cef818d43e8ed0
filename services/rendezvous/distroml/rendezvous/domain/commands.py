"""What may be asked of a job's rendezvous.

`at_ms` is the wall clock, for the record only. Waiting is measured by whoever judges on its own monotonic clock
and comes in as `waited_ms`.
"""

from __future__ import annotations

from dataclasses import dataclass

from distroml.rendezvous.domain.model import ExpectedMember, FailureCategory
from distroml.rendezvous.domain.waiting import Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The agent that speaks: which attempt, which node, which start of the agent."""

    attempt: int
    node: str
    agent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinNode:
    """Take part in an attempt; also sent again by a reconnecting agent, and with another gang after a resize."""

    at_ms: int
    job: str
    sender: Sender
    workers: tuple[str, ...]
    expected: tuple[ExpectedMember, ...]
    min_workers: int
    failures_left: int
    join_timeout_s: int
    store_endpoint: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkReady:
    """The node's workers left every generation up to `after` and wait for the next; `error` says why they left."""

    at_ms: int
    sender: Sender
    after: int
    workers: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStart:
    """A worker process was started."""

    at_ms: int
    sender: Sender
    worker: str
    generation: int
    pid: int
    start: str
    seconds: float
    why_cold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportExit:
    """A worker process ended; `expected` where the platform ended it."""

    at_ms: int
    sender: Sender
    worker: str
    generation: int
    code: int
    signal: int
    category: FailureCategory
    message: str
    last_step: int
    expected: bool
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportHang:
    """A worker shows no sign of progress."""

    at_ms: int
    sender: Sender
    worker: str
    generation: int
    silent_s: float
    last_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportNonFinite:
    """Something stopped being a number in a worker."""

    at_ms: int
    sender: Sender
    worker: str
    generation: int
    step: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPlan:
    """The plan that the generation trains with."""

    at_ms: int
    sender: Sender
    generation: int
    plan: str
    inputs: str
    prediction: str
    best: str = ""
    alternatives_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMeasured:
    """What the plan turned out to cost over `steps` steps."""

    at_ms: int
    sender: Sender
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
class ReportLinks:
    """What the links between the workers do, and how gradients are summed over them."""

    at_ms: int
    sender: Sender
    generation: int
    topology: str
    seconds: float
    reused: bool
    sums: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportScheme:
    """Buckets of gradients, ascending, of a part of the model travel in another way from step `from_step` on."""

    at_ms: int
    sender: Sender
    generation: int
    buckets: tuple[int, ...]
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    from_step: int
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAdvice:
    """What compression would gain the generation."""

    at_ms: int
    sender: Sender
    generation: int
    step: int
    step_seconds: float
    exposed_seconds: float
    predicted_step_seconds: float
    faster: float
    schemes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStep:
    """A step worth an event."""

    at_ms: int
    sender: Sender
    generation: int
    step: int
    sample_from: int
    sample_to: int
    epoch: int
    loss: float
    fingerprint: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """The node's workers were stopped by order; it takes part no longer."""

    at_ms: int
    sender: Sender
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLost:
    """The judge of membership found the node's lease expired."""

    at_ms: int
    node: str
    agent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The judge has seen the job wait for `waiting` for `waited_ms` of its own monotonic clock."""

    at_ms: int
    waiting: Waiting
    waited_ms: int


WorkerSaid = ReportStart | ReportExit | ReportHang | ReportNonFinite
"""Reports about one worker."""
GenerationSaid = ReportPlan | ReportMeasured | ReportLinks | ReportScheme | ReportAdvice | ReportStep
"""Reports about a whole generation, whichever of its workers says so."""
Report = WorkerSaid | GenerationSaid
Command = JoinNode | MarkReady | Report | Leave | ReportLost | Tick
