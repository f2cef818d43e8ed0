"""Workers' lines, and what a job's view holds of its workers, generations, plans, schemes and checkpoints.

Times are Unix milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class NewLine(NamedTuple):
    """A worker's line on its way into the store: `bytes` of text, and the rest as in the contract's `LogRecord`."""

    job: str
    bytes: int
    worker: str
    incarnation: int
    stream: str
    offset: int
    rank: int
    generation: int
    at_ms: int
    text: str
    attempt: int
    level: str
    trace_id: str
    span_id: str


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of the newest generation.

    `state` is `starting`, `running`, `waiting` (its generation broke), `hung`, `exited`, `failed`, `lost` or `done`.
    """

    worker: str
    node: str = ""
    rank: int = -1
    pid: int = 0
    state: str = "starting"
    start: str = ""
    started_ms: int = 0
    message: str = ""


class GenerationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One generation's life; times are 0 until they come."""

    number: int
    attempt: int = 0
    opened_ms: int = 0
    formed_ms: int = 0
    world_size: int = 0
    lost_ms: int = 0
    broken_ms: int = 0
    cause: str = ""
    category: str = ""
    worker: str = ""
    message: str = ""
    last_step: int = 0
    first_recorded_step: int = -1

    @property
    def failed(self) -> bool:
        """It ended because something broke, not because its size was to change."""
        return bool(self.broken_ms) and bool(self.category or self.worker)


class CheckpointRow(msgspec.Struct, frozen=True, kw_only=True):
    """A save and what became of it: `saving`, `committed`, `failed`, `damaged` or `deleted`."""

    save_id: str
    step: int
    generation: int
    state: str
    at_ms: int
    manifest_hash: str = ""
    bytes_total: int = 0
    bytes_written: int = 0
    bytes_reused: int = 0
    save_s: float = 0.0
    verified: bool = False
    message: str = ""


class PlanRow(msgspec.Struct, frozen=True, kw_only=True):
    """A generation's plan, what was predicted of it and what was measured; 0 is not known. Seconds of one step."""

    generation: int
    at_ms: int = 0
    plan: str = ""
    predicted_s: float = 0.0
    predicted_bytes: int = 0
    measured_s: float = 0.0
    measured_bytes: int = 0
    steps: int = 0
    verdict: str = ""
    message: str = ""
    sums: str = ""


class SchemeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets of gradients travel in another way from step `from_step` on.

    Views of earlier releases have `bucket` alone. `place` is the part of the model that they are of, empty where
    replicas have all of it.
    """

    generation: int
    at_ms: int
    from_step: int
    bucket: int
    from_scheme: str
    to_scheme: str
    reason: str
    why: str
    buckets: tuple[int, ...] = ()
    place: str = ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of its buckets."""
        return self.buckets or (self.bucket,)


class HeldRow(msgspec.Struct, frozen=True, kw_only=True):
    """The scheme by which buckets of a part of the model travel, ascending."""

    generation: int
    place: str
    scheme: str
    buckets: tuple[int, ...]


class AdviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What `compress: auto` would gain a generation. Seconds of one step; `faster` is in time to a loss."""

    generation: int
    step: int
    step_s: float
    exposed_s: float
    predicted_s: float
    faster: float
    schemes: str
