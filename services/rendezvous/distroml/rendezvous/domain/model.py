"""What rendezvous knows of one job: the fold of stream `rendezvous/job/<job>`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MAX_WORKERS = 256
"""Workers of one gang, so that a `GenerationFormed` stays below the log's 64 KiB for an event."""


class Phase(StrEnum):
    """Where the job's current attempt stands. Phases are per attempt; the generation's number goes on over attempts."""

    IDLE = "idle"
    OPENING = "opening"
    FORMED = "formed"
    CLOSED = "closed"


class FailureCategory(StrEnum):
    """Why something failed; the names are those of the public enum `FailureCategory` without its prefix."""

    UNSPECIFIED = "UNSPECIFIED"
    EXCEPTION = "EXCEPTION"
    SIGNAL = "SIGNAL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    HANG = "HANG"
    SETUP = "SETUP"
    NODE_LOST = "NODE_LOST"
    PREEMPTED = "PREEMPTED"
    EXIT_CODE = "EXIT_CODE"
    NON_FINITE = "NON_FINITE"
    CORRUPTION = "CORRUPTION"
    RENDEZVOUS_TIMEOUT = "RENDEZVOUS_TIMEOUT"


def finished(code: int, signal: int, category: FailureCategory) -> bool:
    """Whether a worker came to the end of its work: one that was ended from outside may exit 0, too."""
    return code == 0 and signal == 0 and category is FailureCategory.UNSPECIFIED


class Outcome:
    """Values of `Closed.outcome`."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


class Cause:
    """Values of `MemberLost.cause` and, for a broken generation, `GenerationBroken.cause`."""

    WORKER_EXITED = "worker exited"
    WORKER_HANGS = "worker hangs"
    WORKERS_LEFT = "workers left the generation"
    LEASE_EXPIRED = "lease expired"
    STOPPED_IN_PART = "stopped in part"
    DRAIN_TIMED_OUT = "drain timed out"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMember:
    """One node of the gang as the scheduler placed it, and how many workers it brings."""

    node: str
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One worker of a formed generation and its place."""

    worker: str
    node: str
    rank: int
    local_rank: int
    node_rank: int
    local_world_size: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """An agreed member set. `store_endpoint` is a TCPStore (`host:port`) that no worker hosts."""

    job: str
    number: int
    world_size: int
    members: tuple[Member, ...]
    store_endpoint: str
    mesh: Mapping[str, int]
    at_ms: int
    attempt: int

    def member(self, worker: str) -> Member | None:
        """The member of this worker id."""
        return next((m for m in self.members if m.worker == worker), None)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that take part, by node rank."""
        return tuple(dict.fromkeys(m.node for m in self.members))


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedNode:
    """A node of the current attempt that takes part or waits to.

    Attributes:
        agent_id: the agent that speaks for the node; messages of the ones it replaced are fenced.
        replaced: earlier agents of the node, newest last; bounded.
        workers: ids of the workers it brings.
        declared: digest of the gang that this node last named; a change of it is a change of the gang.
        ready: all its workers are ready for a generation newer than the newest formed one.
        error: why the workers left the formed generation, where they said so.
    """

    agent_id: str
    workers: tuple[str, ...]
    store_endpoint: str
    address: str
    declared: str
    replaced: tuple[str, ...] = ()
    ready: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The formed generation is to be left, and the gang that the next one will have."""

    reason: str
    expected: tuple[ExpectedMember, ...]
    min_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the attempt ended."""

    outcome: str
    category: FailureCategory
    reason: str
    message: str


Mark = tuple[int, ...]
"""(generation, step, …): the newest report of its kind that is recorded; a repeat is not newer."""

_SCHEME = "scheme"
_BUCKETS_OF_A_STEP = 4096


def scheme_mark(generation: int, from_step: int, bucket: int) -> Mark:
    """Changes of schemes are told in order of step and first bucket, so that one mark serves all buckets of a place."""
    first = from_step * _BUCKETS_OF_A_STEP
    last = _BUCKETS_OF_A_STEP - 1
    # States are recorded with the short form; the long one stands between its largest and the next step's first.
    return (generation, first + bucket) if bucket <= last else (generation, first + last, bucket)


def scheme_key(place: str) -> str:
    """Under which the mark of a place stands."""
    return f"{_SCHEME}/{place}" if place else _SCHEME


def scheme_marks(marks: Mapping[str, Mark]) -> Mapping[str, Mark]:
    """Those of all places."""
    return {key: mark for key, mark in marks.items() if key.partition("/")[0] == _SCHEME}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """The state of one job's stream.

    Attributes:
        number: the newest generation ever opened, 0 for none; equals the job's fence.
        formed: the newest generation ever formed; in force only in phase FORMED.
        expected: the gang as the scheduler placed it.
        failures_left: failures that this attempt may still have.
        joined: by node, in order of joining.
        took_part: by node, the newest generation that was formed with it.
        finished: workers of the formed generation that came to the end of their work.
        stopping: the platform has begun to stop the formed generation; its failures no longer count.
        marks: by kind and worker, what is already recorded.
        step_whys: why the step of mark `step` was recorded, so that one step may be recorded for two reasons.
    """

    job: str = ""
    attempt: int = 0
    number: int = 0
    phase: Phase = Phase.IDLE
    expected: tuple[ExpectedMember, ...] = ()
    min_workers: int = 0
    failures_left: int = 0
    join_timeout_s: int = 0
    joined: Mapping[str, JoinedNode] = field(default_factory=dict[str, JoinedNode])
    took_part: Mapping[str, int] = field(default_factory=dict[str, int])
    formed: Generation | None = None
    finished: tuple[str, ...] = ()
    stopping: bool = False
    drain: Drain | None = None
    ending: Ending | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict[str, Mark])
    step_whys: tuple[str, ...] = ()

    @property
    def current(self) -> Generation | None:
        """The generation in force: None while one is opening, and after the attempt closed."""
        return self.formed if self.phase is Phase.FORMED else None

    @property
    def workers_expected(self) -> int:
        """The size of the whole gang."""
        return sum(e.workers for e in self.expected)

    def expects(self, node: str) -> bool:
        """Whether the gang has a place on `node`."""
        return any(e.node == node for e in self.expected)

    @property
    def ready(self) -> Mapping[str, JoinedNode]:
        """Joined nodes of the gang whose workers are ready for the next generation."""
        return {name: node for name, node in self.joined.items() if node.ready and self.expects(name)}

    def rank(self, worker: str, generation: int) -> int:
        """The worker's rank in that generation, -1 where it is not known any more."""
        member = self.formed.member(worker) if self.formed and self.formed.number == generation else None
        return member.rank if member else -1
