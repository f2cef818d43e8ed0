"""What the runtime needs of the platform, whether an agent is there or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from distroml.workerlink import (
    AskLatest,
    CheckpointCommitted,
    CheckpointFailed,
    CompressionAdvised,
    CorruptionFound,
    Drain,
    Generation,
    GenerationBroken,
    Latest,
    LinksProbed,
    PlanChosen,
    PlanMeasured,
    SaveBegun,
    SaveFailed,
    SaveOpened,
    SaveRefused,
    SchemeChanged,
    ShardSaved,
    Span,
    StepRecorded,
    StepSample,
    Stop,
    Stopping,
    WorkerFailed,
)

Durable = (
    CompressionAdvised
    | LinksProbed
    | PlanChosen
    | PlanMeasured
    | SaveBegun
    | SaveFailed
    | SchemeChanged
    | ShardSaved
    | StepRecorded
    | Stopping
    | WorkerFailed
)
"""Messages that are kept, within a bound, until they are sent."""

Pushed = (
    Generation | GenerationBroken | Drain | Stop | SaveOpened | SaveRefused | CheckpointCommitted | CheckpointFailed
)
"""Messages that a worker hands to whoever subscribed to their kind."""

P = TypeVar("P", bound=Pushed)


class Link(Protocol):
    """The way to the agent. Every method returns at once but `wait_generation`, `ask`, `flush` and `close`."""

    @property
    def attached(self) -> bool:
        """Whether an agent started this process; False: the run stands alone and no message goes anywhere."""
        ...

    def entered(self, generation: int) -> None:
        """The worker now runs in `generation`: said in every `Hello` from here on."""
        ...

    def progress(self, *, step: int, phase: str) -> None:
        """What the next heartbeats say."""
        ...

    def sample(self, sample: StepSample) -> None:
        """Queue a step sample; the oldest is dropped, and counted, where the buffer is full."""
        ...

    def span(self, span: Span) -> None:
        """Queue a finished span; the oldest is dropped, and counted, where the buffer is full."""
        ...

    def send(self, message: Durable) -> None:
        """Queue a message that must not be dropped lightly; see `Outbox` for the bound."""
        ...

    def subscribe(self, kind: type[P], callback: Callable[[P], None]) -> None:
        """Call `callback` on the link's thread for every message of `kind`; replaces an earlier one."""
        ...

    def leave(self, generation: int, error: str) -> None:
        """Say that this worker left `generation` and awaits the next; said again after a reconnect."""
        ...

    def wait_generation(self, after: int, timeout_s: float) -> Generation | None:
        """The newest generation beyond `after`; None where `timeout_s` passed without one."""
        ...

    def ask(self, question: AskLatest | CorruptionFound, timeout_s: float) -> Latest | None:
        """The agent's answer; None where `timeout_s` passed without one."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that is queued is sent; False where `timeout_s` passed before."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what is queued, as far as `timeout_s` allows, and end the connection."""
        ...
