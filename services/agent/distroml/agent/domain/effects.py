"""What an attempt's policy wants done; the shell does it, in order."""

from __future__ import annotations

from dataclasses import dataclass

from distroml.agent.domain.exits import Category, Verdict
from distroml.agent.domain.gang import Formed, Phase
from distroml.agent.domain.inputs import Overdue
from distroml.workerlink import CheckpointRef, ToWorker


@dataclass(frozen=True, slots=True)
class Join:
    """(Re)join rendezvous with a store that no generation has used yet."""

    running_generation: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SayReady:
    """Tell rendezvous that all places are free for a generation newer than `after`."""

    after: int
    workers: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class AskRestore:
    """Ask the catalogue what generation `number` starts from; answered by `RestoreIs`."""

    number: int


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a process in a place of a formed generation."""

    worker: str
    incarnation: int
    formed: Formed
    restore: CheckpointRef | None


@dataclass(frozen=True, slots=True)
class EndWorker:
    """SIGTERM, and SIGKILL after `grace_s`; 0: SIGKILL at once."""

    worker: str
    incarnation: int
    grace_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message over the worker's link."""

    worker: str
    message: ToWorker


@dataclass(frozen=True, slots=True)
class Wake:
    """Feed `input` back after `after_s`."""

    after_s: float
    input: Overdue


@dataclass(frozen=True, slots=True)
class ReportExit:
    """Tell rendezvous of an end; durable until acknowledged."""

    worker: str
    generation: int
    rank: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ReportHang:
    """Tell rendezvous of a hang."""

    worker: str
    generation: int
    rank: int
    silent_s: float
    last_step: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell rendezvous that this node takes part no longer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Observe:
    """Tell the scheduler where the attempt stands on this node."""

    phase: Phase
    category: Category = Category.UNSPECIFIED
    message: str = ""


Effect = (
    Join | SayReady | AskRestore | StartWorker | EndWorker | Tell | Wake | ReportExit | ReportHang | Leave | Observe
)
