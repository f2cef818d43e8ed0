"""What happened to a job's checkpoints, stream `checkpoint/job/<job>`.

Public ones have the fields of the protobuf message of the same name; `ShardReported` and `PinSet` are private.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A save was opened on a base, which is pinned as long as the save is open."""

    at_ms: int
    job: str
    save_id: str
    step: int
    generation: int
    world_size: int
    base_manifest_hash: str
    keep: int
    project: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReported:
    """One rank's part is durable."""

    at_ms: int
    save_id: str
    rank: int
    shard_key: str
    shard_hash: str
    bytes_written: int
    bytes_reused: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """Every part was reported and checked, and the manifest is durable: from here on it is a checkpoint."""

    at_ms: int
    save_id: str
    step: int
    generation: int
    manifest_hash: str
    shards: int
    bytes_total: int
    bytes_written: int
    bytes_reused: int
    save_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFailed:
    """The step will not be a checkpoint; `save_id` is empty where the save was never opened."""

    at_ms: int
    save_id: str
    step: int
    generation: int
    rank: int
    message: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Every chunk of a checkpoint was read and had its hash."""

    at_ms: int
    step: int
    manifest_hash: str
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptChunkFound:
    """A checkpoint is set aside: bytes it needs are not what was saved, or are gone."""

    at_ms: int
    step: int
    manifest_hash: str
    object_key: str
    chunk_hash: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack:
    """The newest sound checkpoint is an older one now; none is left where `manifest_hash` is empty."""

    at_ms: int
    from_step: int
    to_step: int
    manifest_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """The checkpoint is no more; its objects are removed afterwards."""

    at_ms: int
    step: int
    manifest_hash: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinSet:
    """`owner` keeps a checkpoint from collection until `until_ms`; 0 removes the pin."""

    at_ms: int
    manifest_hash: str
    owner: str
    until_ms: int


Event: TypeAlias = (
    Begun | ShardReported | Committed | SaveFailed | Verified | CorruptChunkFound | FellBack | Deleted | PinSet
)
