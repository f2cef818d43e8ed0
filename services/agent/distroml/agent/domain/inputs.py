"""What can happen to an attempt, as its agent hears of it."""

from __future__ import annotations

from dataclasses import dataclass

from distroml.agent.domain.exits import Category, Intent, Verdict
from distroml.agent.domain.gang import Formed, Order
from distroml.workerlink import CheckpointRef


@dataclass(frozen=True, slots=True)
class Prepared:
    """Bundle, interpreter and environment are in place."""


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """The attempt cannot run on this node."""

    message: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """Rendezvous has this node."""


@dataclass(frozen=True, slots=True)
class JoinEnded:
    """The stream to rendezvous broke; the shell dials again."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A newer generation is being formed."""

    number: int


@dataclass(frozen=True, slots=True)
class GenerationIs:
    """A generation was formed."""

    formed: Formed


@dataclass(frozen=True, slots=True)
class Broke:
    """A generation is over."""

    number: int
    cause: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Leave after the current step."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class WasClosed:
    """Rendezvous is over for this attempt."""

    outcome: str
    category: Category
    message: str


@dataclass(frozen=True, slots=True)
class RestoreIs:
    """What the catalogue answered for a generation."""

    number: int
    restore: CheckpointRef | None


@dataclass(frozen=True, slots=True)
class Exited:
    """A process ended."""

    worker: str
    incarnation: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SaidHello:
    """A worker is on the link."""

    worker: str
    managed: bool
    generation: int


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A worker's connection ended."""

    worker: str


@dataclass(frozen=True, slots=True)
class Awaits:
    """A managed worker left its generation."""

    worker: str
    after: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Hung:
    """The silence policy gave a worker up."""

    worker: str
    incarnation: int
    silent_s: float
    message: str
    last_step: int


@dataclass(frozen=True, slots=True)
class Overdue:
    """A worker was given time to do something, and the time is over."""

    worker: str
    incarnation: int
    what: Intent
    number: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """The scheduler wants the attempt to end."""

    order: Order


@dataclass(frozen=True, slots=True)
class Resized:
    """The node is to have these workers."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """The attempt is no longer desired."""


Input = (
    Prepared | PrepareFailed | Accepted | JoinEnded | Opened | GenerationIs | Broke | DrainAsked | WasClosed
    | RestoreIs | Exited | SaidHello | LinkLost | Awaits | Hung | Overdue | Ordered | Resized | Removed
)  # fmt: skip
