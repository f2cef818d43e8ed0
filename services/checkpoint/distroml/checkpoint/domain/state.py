"""The state of one job's catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_KEEP = 3
MAX_KEEP = 24
MAX_PINS = 64
MAX_WORLD_SIZE = 4096
REMEMBERED = 50
"""How many failed saves and deleted checkpoints are remembered for callers that ask late."""


class Phase(StrEnum):
    """What a checkpoint is now."""

    COMMITTED = "Committed"
    DAMAGED = "Damaged"
    DELETED = "Deleted"


@dataclass(frozen=True, slots=True)
class PinHeld:
    """A pin of one owner."""

    owner: str
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint and what became of it."""

    save_id: str
    step: int
    generation: int
    manifest_hash: str
    base_manifest_hash: str
    shards: int
    bytes_total: int
    bytes_written: int
    bytes_reused: int
    at_ms: int
    save_s: float
    phase: Phase = Phase.COMMITTED
    message: str = ""
    verified_at_ms: int = 0
    pins: tuple[PinHeld, ...] = ()

    def pinned(self, at_ms: int) -> bool:
        """Whether any pin holds at this time."""
        return any(pin.until_ms > at_ms for pin in self.pins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's reported part."""

    rank: int
    key: str
    sha256: str
    bytes_written: int
    bytes_reused: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSave:
    """A save on its way; `shards` are ordered by rank."""

    save_id: str
    step: int
    generation: int
    world_size: int
    base_manifest_hash: str
    begun_ms: int
    shards: tuple[Shard, ...] = ()

    @property
    def missing(self) -> int:
        """How many ranks have not reported."""
        return self.world_size - len(self.shards)

    def shard(self, rank: int) -> Shard | None:
        """What `rank` reported."""
        return next((shard for shard in self.shards if shard.rank == rank), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedSave:
    """A step that did not become a checkpoint."""

    generation: int
    step: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Everything the catalogue knows of a job.

    Attributes:
        opened: how many saves were ever opened; a save's id holds its number.
        generation: newest generation that asked for a save.
        step: newest step of that generation that was opened or refused; saves only go forward from it.
        checkpoints: in the order of their commits; the deleted ones among them are forgotten after a while.
    """

    job: str = ""
    project: str = ""
    keep: int = DEFAULT_KEEP
    opened: int = 0
    generation: int = 0
    step: int = -1
    open: OpenSave | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    failed: tuple[FailedSave, ...] = ()

    def newest_sound(self, max_step: int = 0) -> Checkpoint | None:
        """The newest committed checkpoint that is not known to be damaged, at or before `max_step` (0: any)."""
        sound = (c for c in reversed(self.checkpoints) if c.phase is Phase.COMMITTED)
        return next((c for c in sound if not max_step or c.step <= max_step), None)

    def of_step(self, step: int) -> Checkpoint | None:
        """The newest checkpoint of this step that was not deleted."""
        return next((c for c in reversed(self.checkpoints) if c.step == step and c.phase is not Phase.DELETED), None)

    def of_hash(self, manifest_hash: str) -> Checkpoint | None:
        """The checkpoint of this manifest."""
        return next((c for c in reversed(self.checkpoints) if c.manifest_hash == manifest_hash), None)

    def committed(self, generation: int, step: int) -> Checkpoint | None:
        """The checkpoint that this save became, whatever happened to it later."""
        return next((c for c in reversed(self.checkpoints) if (c.generation, c.step) == (generation, step)), None)

    def failure(self, generation: int, step: int) -> FailedSave | None:
        """Why this save did not become a checkpoint."""
        return next((f for f in reversed(self.failed) if (f.generation, f.step) == (generation, step)), None)

    def is_open(self, generation: int, step: int) -> bool:
        """Whether this save is on its way."""
        return self.open is not None and (self.open.generation, self.open.step) == (generation, step)

    @property
    def present(self) -> tuple[Checkpoint, ...]:
        """Checkpoints that were not deleted."""
        return tuple(c for c in self.checkpoints if c.phase is not Phase.DELETED)


def save_id(number: int) -> str:
    """The id of the job's save of this number."""
    return f"s{number:010d}"


def save_number(save_id: str) -> int | None:
    """The number in a save's id; None for anything else."""
    digits = save_id[1:]
    return int(digits) if save_id[:1] == "s" and len(digits) >= 10 and digits.isascii() and digits.isdigit() else None
