"""Wishes about one job. Time and ids come in with them: the domain makes neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Take the job in. `spec` is complete and has passed `validation.violations`; `traceparent` is of who asks."""

    at_ms: int
    job: str
    spec: JobSpec
    actor: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Start the next attempt on these slots, which the ledger assigns in the same commit."""

    at_ms: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Rendezvous formed a generation of the attempt."""

    at_ms: int
    attempt: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """An agent reports how far the attempt is; `total_steps` is 0 where nobody knows."""

    at_ms: int
    attempt: int
    step: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CountFailure:
    """A generation broke by the job's own fault; rendezvous goes on with the next one."""

    at_ms: int
    generation: int
    category: FailureCategory
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailAttempt:
    """An agent cannot run the attempt on its node."""

    at_ms: int
    attempt: int
    node: str
    category: FailureCategory
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Rendezvous closed the attempt."""

    at_ms: int
    attempt: int
    outcome: Literal["Succeeded", "Failed", "Stopped"]
    category: FailureCategory = FailureCategory.UNSPECIFIED
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAttempt:
    """No process of the attempt is left anywhere, and its slots are freed in the same commit."""

    at_ms: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """End the attempt and put the job back into the queue, for a reason that is not the job's fault."""

    at_ms: int
    attempt: int
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Save, stop, and hold no slot until resumed."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Queue a paused job again."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End the job for good."""

    at_ms: int
    actor: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Let the gang have `min_workers` to `max_workers` workers from now on."""

    at_ms: int
    min_workers: int
    max_workers: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regang:
    """Give a running gang these slots instead, which the ledger changes in the same commit."""

    at_ms: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPriority:
    """Move the job in the queue."""

    at_ms: int
    priority: int
    actor: str = ""


Command: TypeAlias = (
    Submit
    | Admit
    | Start
    | Progress
    | CountFailure
    | FailAttempt
    | Finish
    | EndAttempt
    | Preempt
    | Pause
    | Resume
    | Cancel
    | Resize
    | Regang
    | SetPriority
)
