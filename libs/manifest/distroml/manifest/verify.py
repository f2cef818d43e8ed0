"""Checking bytes against a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distroml.manifest.chunking import chunk_hash
from distroml.manifest.model import ChunkRef, Manifest, ObjectRef

Read = Callable[[str, int, int], bytes | None]
"""(object key, offset, length) to bytes; fewer bytes where the object is short, None where it is absent."""


@dataclass(frozen=True, slots=True)
class ChunkDamage:
    """A chunk that is not what was saved; `message` says how."""

    object_key: str
    chunk_hash: str
    message: str


def damage_of(object: ObjectRef, chunk: ChunkRef, data: bytes | memoryview | None) -> ChunkDamage | None:
    """None where `data` is the chunk; else how it differs."""
    where = f"{object.key} at {chunk.offset}"
    if data is None:
        return ChunkDamage(object.key, chunk.sha256, f"{where}: the object is missing")
    if len(data) != chunk.length:
        return ChunkDamage(object.key, chunk.sha256, f"{where}: {len(data)} of {chunk.length} bytes are there")
    if (actual := chunk_hash(data)) != chunk.sha256:
        return ChunkDamage(object.key, chunk.sha256, f"{where}: {chunk.length} bytes have the hash {actual}")
    return None


def verify_chunks(manifest: Manifest, read: Read) -> Iterator[tuple[ChunkRef, ChunkDamage | None]]:
    """Read every distinct chunk once, in the order of the objects, and compare its hash."""
    chunks = {
        (chunk.object, chunk.offset, chunk.length, chunk.sha256): chunk
        for entry in manifest.entries
        for chunk in entry.chunks
    }
    for key in sorted(chunks):
        chunk = chunks[key]
        object = manifest.objects[chunk.object]
        yield chunk, damage_of(object, chunk, read(object.key, chunk.offset, chunk.length))
