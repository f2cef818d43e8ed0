"""Facts about one job. Public: each is the message `JobX` of the scheduler's events.proto, field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A user asked for the job."""

    job: str
    spec: JobSpec
    at_ms: int
    actor: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """The specification was found sound."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The job waits for slots."""

    at_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A scheduling cycle gave the job its slots."""

    at_ms: int
    attempt: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """A try of the job began; `failures_left` is what rendezvous may count against it."""

    at_ms: int
    attempt: int
    placement: tuple[Placement, ...]
    failures_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The gang runs in this generation."""

    at_ms: int
    attempt: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """Coarse progress, at most once per percent."""

    at_ms: int
    step: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRequested:
    """The job shall save, stop and give its slots back."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """The job holds no slot and stays so until it is resumed."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A paused job may run again."""

    at_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRequested:
    """The gang shall have another size."""

    at_ms: int
    min_workers: int
    max_workers: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """The running gang has other slots."""

    at_ms: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityChanged:
    """The job stands elsewhere in the queue."""

    at_ms: int
    priority: int
    actor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionRequested:
    """The attempt shall end and the job go back to the queue."""

    at_ms: int
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempted:
    """The attempt ended without the job; `counted` says whether it used up one of its preemptions."""

    at_ms: int
    reason: str
    counted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """The job waits for slots again, at its old place in the queue."""

    at_ms: int
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCounted:
    """One of the job's failures is used up."""

    at_ms: int
    category: FailureCategory
    generation: int
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """Every worker ended well."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job will not be tried again."""

    at_ms: int
    category: FailureCategory
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """A user wants the job ended."""

    at_ms: int
    actor: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The job was ended by a user."""

    at_ms: int


Event: TypeAlias = (
    Submitted
    | Validated
    | Queued
    | Admitted
    | AttemptStarted
    | Started
    | Progressed
    | PauseRequested
    | Paused
    | Resumed
    | ResizeRequested
    | Resized
    | PriorityChanged
    | PreemptionRequested
    | Preempted
    | Requeued
    | FailureCounted
    | Succeeded
    | Failed
    | CancelRequested
    | Cancelled
)
