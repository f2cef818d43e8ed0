"""Manifests to bytes and back: deterministic JSON out, strictly checked structs in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

import msgspec

from distroml.manifest.cover import check_cover
from distroml.manifest.dtypes import item_bytes
from distroml.manifest.model import (
    MANIFEST_FORMAT,
    MAX_EXTRA_BYTES,
    SHARD_FORMAT,
    Entry,
    Manifest,
    ObjectRef,
    ShardManifest,
    TensorEntry,
)

M = TypeVar("M", ShardManifest, Manifest)


class ManifestError(Exception):
    """Root of what reading a manifest raises.

    ManifestError
    ├── ManifestDamaged    the bytes are not what was written, or contradict themselves
    └── ForeignManifest    the bytes are no manifest of a format this release knows
    """


class ManifestDamaged(ManifestError):
    """The bytes are not what was written, or contradict themselves."""


class ForeignManifest(ManifestError):
    """The bytes are no manifest of a format this release knows."""


class _Probe(msgspec.Struct):
    format: str = ""


def hash_of(data: bytes) -> str:
    """The name of a manifest: SHA-256 of its bytes, in hex."""
    return sha256(data).hexdigest()


def encode(manifest: ShardManifest | Manifest) -> bytes:
    """Canonical JSON: equal manifests have equal bytes."""
    return msgspec.json.encode(manifest, order="deterministic")


def decode_shard(data: bytes) -> ShardManifest:
    """Read one rank's part and check that it agrees with itself; raises `ManifestError`."""
    _probe(data, SHARD_FORMAT)
    shard = _decode(data, ShardManifest)
    if shard.rank >= shard.world_size:
        raise ManifestDamaged(f"the shard manifest is of rank {shard.rank} in a world of {shard.world_size}")
    if len(shard.extra) > MAX_EXTRA_BYTES:
        raise ManifestDamaged(
            f"the shard manifest's extra state has {len(shard.extra)} bytes, at most {MAX_EXTRA_BYTES}"
        )
    _check(shard.objects, shard.entries)
    return shard


def decode_manifest(data: bytes) -> Manifest:
    """Read a checkpoint's manifest and check that it is whole; raises `ManifestError`.

    Whole: every tensor is covered exactly once by its slices, every chunk lies inside its object, one extra per rank.
    """
    _probe(data, MANIFEST_FORMAT)
    manifest = _decode(data, Manifest)
    total = _check(manifest.objects, manifest.entries)
    if total != manifest.bytes_total:
        raise ManifestDamaged(f"the manifest says {manifest.bytes_total} bytes, its entries add up to {total}")
    if len(manifest.extras) != manifest.world_size:
        raise ManifestDamaged(f"the manifest has {len(manifest.extras)} extras for a world of {manifest.world_size}")
    if problem := check_cover(manifest.entries):
        raise ManifestDamaged(f"the manifest is not whole: {problem}")
    return manifest


def read_shard(data: bytes, sha256: str) -> ShardManifest:
    """`decode_shard` of bytes that must have this hash."""
    _check_hash(data, sha256, "shard manifest")
    return decode_shard(data)


def read_manifest(data: bytes, sha256: str) -> Manifest:
    """`decode_manifest` of bytes that must have this hash."""
    _check_hash(data, sha256, "manifest")
    return decode_manifest(data)


def _check_hash(data: bytes, expected: str, what: str) -> None:
    if (actual := hash_of(data)) != expected:
        raise ManifestDamaged(
            f"the {what} named {expected} has the hash {actual} ({len(data)} bytes): "
            "its bytes changed after they were written; use an older checkpoint"
        )


def _probe(data: bytes, expected: str) -> None:
    try:
        found = msgspec.json.decode(data, type=_Probe).format
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestDamaged(f"expected a {expected} as JSON: {error}") from None
    if found != expected:
        raise ForeignManifest(
            f"expected the format {expected!r}, found {found!r}: written by another release or another program"
        )


def _decode(data: bytes, type_: type[M]) -> M:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestDamaged(f"the {type_.__name__} does not have the shape it must have: {error}") from None


def _check(objects: Sequence[ObjectRef], entries: Sequence[Entry]) -> int:
    """Check chunks against objects and entries; returns the bytes of all entries."""
    keys = {object.key for object in objects}
    if len(keys) != len(objects):
        raise ManifestDamaged("the manifest lists an object twice")
    total = 0
    for entry in entries:
        length = 0
        for chunk in entry.chunks:
            if chunk.object >= len(objects):
                raise ManifestDamaged(f"{entry.fqn}: a chunk refers to object {chunk.object} of {len(objects)}")
            if chunk.offset + chunk.length > objects[chunk.object].size:
                raise ManifestDamaged(
                    f"{entry.fqn}: a chunk ends at {chunk.offset + chunk.length} in {objects[chunk.object].key}, "
                    f"which has {objects[chunk.object].size} bytes"
                )
            length += chunk.length
        if isinstance(entry, TensorEntry):
            _check_tensor(entry, length)
        total += length
    return total


def _check_tensor(entry: TensorEntry, length: int) -> None:
    if not len(entry.shape) == len(entry.offsets) == len(entry.sizes):
        raise ManifestDamaged(f"{entry.fqn}: shape, offsets and sizes differ in their number of dimensions")
    for extent, offset, size in zip(entry.shape, entry.offsets, entry.sizes, strict=True):
        if offset + size > extent:
            raise ManifestDamaged(
                f"{entry.fqn}: the slice at {entry.offsets} of {entry.sizes} leaves the shape {entry.shape}"
            )
    try:
        expected = math.prod(entry.sizes) * item_bytes(entry.dtype)
    except ValueError as error:
        raise ManifestDamaged(f"{entry.fqn}: {error}") from None
    if expected != length:
        raise ManifestDamaged(f"{entry.fqn}: {entry.sizes} of {entry.dtype} has {expected} bytes, its chunks {length}")
