"""What may be asked of a job's catalogue. Time comes in with the command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginSave:
    """Open a save; every rank may ask, the first one opens it."""

    at_ms: int
    job: str
    project: str
    generation: int
    step: int
    world_size: int
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportShard:
    """One rank's part is durable."""

    at_ms: int
    generation: int
    step: int
    rank: int
    world_size: int
    shard_key: str
    shard_hash: str
    bytes_written: int
    bytes_reused: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSave:
    """Every part was read and checked, and the manifest of this hash is durable."""

    at_ms: int
    save_id: str
    manifest_hash: str
    bytes_total: int
    bytes_written: int
    bytes_reused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailSave:
    """A step will not be a checkpoint: a rank said so, or the checks before the commit did (`rank` -1)."""

    at_ms: int
    generation: int
    step: int
    rank: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCorruption:
    """Bytes are not what was saved: `reported` could not be loaded, and `sharing` need the same bytes."""

    at_ms: int
    reported: str
    sharing: tuple[str, ...]
    object_key: str
    chunk_hash: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordVerified:
    """Every chunk of a checkpoint was read and had its hash."""

    at_ms: int
    manifest_hash: str
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Keep the checkpoint of `step` for `ttl_s`; 0 removes the pin of `owner`."""

    at_ms: int
    step: int
    owner: str
    ttl_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove the checkpoint of `step`."""

    at_ms: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Remove what retention does not keep."""

    at_ms: int


Command: TypeAlias = (
    BeginSave | ReportShard | CommitSave | FailSave | ReportCorruption | RecordVerified | Pin | Delete | Collect
)
