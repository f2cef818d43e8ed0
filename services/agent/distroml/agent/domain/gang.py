"""The state of one attempt on one node. Decisions are in `attempt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from distroml.agent.domain.exits import Category, Intent
from distroml.workerlink import CheckpointRef, Member

TEARDOWN_S = 20.0
"""How long a managed worker may take to leave a broken generation before it is killed."""

REMOVED_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL for workers of an attempt that nobody wants any more."""


class Phase(StrEnum):
    """Where the attempt stands on this node."""

    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Formed:
    """A generation as rendezvous formed it."""

    number: int
    world_size: int
    members: tuple[Member, ...]
    node_ranks: Mapping[str, int]
    local_world_sizes: Mapping[str, int]
    store_host: str
    store_port: int
    traceparent: str = ""
    """Of the span in which it formed."""

    def member(self, worker: str) -> Member | None:
        """This worker's place, None where it has none."""
        return next((member for member in self.members if member.worker == worker), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of a worker."""

    incarnation: int
    generation: int
    rank: int
    managed: bool = False
    connected: bool = False
    awaiting_after: int = -1
    """It left every generation up to this one and waits for the next; -1 while it is in one."""
    error: str = ""
    """Why it left its last generation by itself."""
    intent: Intent = Intent.NONE
    why: str = ""
    doomed: bool = False
    """SIGKILL is on its way."""

    @property
    def awaiting(self) -> bool:
        """In no generation, and alive."""
        return self.awaiting_after >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A worker's place on this node; processes come and go in it."""

    worker: str
    incarnation: int = 0
    process: Process | None = None
    ended_in: int = 0
    """The generation in which its last process ended; that one gets no second process."""
    leaving: bool = False
    """A resize took the place away."""

    @property
    def ready(self) -> bool:
        """Free for a new generation."""
        return self.process is None or (self.process.awaiting and not self.process.doomed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A polite end: by the scheduler, or because rendezvous closed."""

    reason: str
    grace_s: float
    checkpoint: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The whole state."""

    places: tuple[Place, ...]
    grace_s: float
    reforms: bool = True
    """Whether what is left of a broken generation may take part in the next one in the same processes."""
    retired: tuple[Place, ...] = ()
    """Places that resizes took away: one that comes back goes on counting its incarnations."""
    prepared: bool = False
    joined: bool = False
    store_used: bool = False
    """A generation formed since the last join: the next one needs a store of its own."""
    opened: int = 0
    formed: Formed | None = None
    broken: int = 0
    """The newest generation known to be over."""
    draining: int = 0
    """The generation that rendezvous asked to leave."""
    restore_known: bool = False
    restore: CheckpointRef | None = None
    ready_said: int = -1
    order: Order | None = None
    left: bool = False
    closed: bool = False
    phase: Phase = Phase.PREPARING
    category: Category = Category.UNSPECIFIED
    message: str = ""

    @property
    def current(self) -> Formed | None:
        """The generation in force."""
        return self.formed if self.formed is not None and self.formed.number > self.broken else None

    @property
    def running_generation(self) -> int:
        """The generation in which processes of this node run, 0 for none."""
        current = self.current
        if current is None:
            return 0
        alive = any(p.process is not None and p.process.generation == current.number for p in self.places)
        return current.number if alive else 0

    @property
    def over(self) -> bool:
        """Nothing of the attempt is left, and nothing will come."""
        return self.phase in (Phase.STOPPED, Phase.FAILED) and all(p.process is None for p in self.places)

    @property
    def workers(self) -> tuple[str, ...]:
        """The places that take part in the next generation."""
        return tuple(place.worker for place in self.places if not place.leaving)
