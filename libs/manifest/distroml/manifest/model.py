"""What a manifest says, as frozen structs.

Decoding is strict: unknown fields, wrong types and negative numbers are refused before any rule is looked at.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

SHARD_FORMAT = "distroml.shard/1"
MANIFEST_FORMAT = "distroml.manifest/1"
MAX_EXTRA_BYTES = 1024 * 1024
"""Most bytes of one rank's small state (`extra`)."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
HashOrNone = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$")]
Key = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*$", max_length=512)
]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class ObjectRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An object that holds chunks: its key and its whole size in bytes."""

    key: Key
    size: Count


class ChunkRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bytes `[offset, offset + length)` of the manifest's `objects[object]`, and their SHA-256."""

    object: Count
    offset: Count
    length: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    sha256: Sha256


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, tag="tensor", forbid_unknown_fields=True):
    """A slice of one tensor: where it lies in the global tensor and which chunks, in order, are its bytes.

    Attributes:
        fqn: fully-qualified name; `path` joined by dots.
        path: keys and list indices from the root of the state to the tensor.
        dtype: name in `ITEM_BYTES`.
        shape: global shape of the whole tensor.
        offsets: where the slice begins; with `fqn` the slice's DCP metadata index.
        sizes: shape of the slice.
        chunks: none where the slice has no elements.
    """

    fqn: Name
    path: tuple[str | int, ...]
    dtype: str
    shape: tuple[Count, ...]
    offsets: tuple[Count, ...]
    sizes: tuple[Count, ...]
    chunks: tuple[ChunkRef, ...]


class BytesEntry(msgspec.Struct, frozen=True, kw_only=True, tag="bytes", forbid_unknown_fields=True):
    """A value that is no tensor, encoded as msgspec bytes."""

    fqn: Name
    path: tuple[str | int, ...]
    chunks: tuple[ChunkRef, ...]


Entry = TensorEntry | BytesEntry


class ShardManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's part of a checkpoint.

    Attributes:
        base: hash of the manifest whose chunks this part may take over; empty for none.
        objects: every object the entries refer to, its own packs and those of the base.
        extra: this rank's small state (random generators, data position), encoded by the runtime.
        bytes_written: bytes of the packs this rank put.
        bytes_reused: bytes taken over from the base instead of being written.
    """

    format: str = SHARD_FORMAT
    job: Name
    save_id: Name
    step: Count
    generation: Count
    rank: Count
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    base: HashOrNone = ""
    objects: tuple[ObjectRef, ...]
    entries: tuple[Entry, ...]
    extra: bytes = b""
    bytes_written: Count
    bytes_reused: Count


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole checkpoint: the parts of every rank made one.

    Attributes:
        extras: each rank's small state, by rank.
        bytes_total: bytes that all entries describe.
        bytes_written: bytes this save put into the store.
        bytes_reused: bytes it took over from `base`.
    """

    format: str = MANIFEST_FORMAT
    job: Name
    project: str = ""
    save_id: Name
    step: Count
    generation: Count
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    base: HashOrNone = ""
    objects: tuple[ObjectRef, ...]
    entries: tuple[Entry, ...]
    extras: tuple[bytes, ...]
    bytes_total: Count
    bytes_written: Count
    bytes_reused: Count
