"""What a manifest needs, and what it shares with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distroml.manifest.model import Manifest, ObjectRef


def reachable(manifest: Manifest) -> frozenset[str]:
    """Keys of every object that loading the checkpoint reads (the manifest's own object not among them)."""
    return frozenset(object.key for object in manifest.objects)


@dataclass(frozen=True, slots=True)
class KnownChunk:
    """A chunk that lies in the store already."""

    object: ObjectRef
    offset: int
    length: int


def chunk_index(manifest: Manifest) -> Mapping[str, KnownChunk]:
    """The manifest's chunks by hash: a new save may refer to them instead of writing them again."""
    return {
        chunk.sha256: KnownChunk(manifest.objects[chunk.object], chunk.offset, chunk.length)
        for entry in manifest.entries
        for chunk in entry.chunks
    }


@dataclass(frozen=True, slots=True)
class Diff:
    """How a checkpoint differs from its base, in chunks and bytes; `dropped` are the base's that it does not need."""

    reused_chunks: int
    reused_bytes: int
    new_chunks: int
    new_bytes: int
    dropped_chunks: int


def diff(manifest: Manifest, base: Manifest) -> Diff:
    """Compare by chunk hash; a chunk used several times counts once."""
    known, here = chunk_index(base), chunk_index(manifest)
    reused = here.keys() & known.keys()
    fresh = here.keys() - known.keys()
    return Diff(
        reused_chunks=len(reused),
        reused_bytes=sum(here[sha].length for sha in reused),
        new_chunks=len(fresh),
        new_bytes=sum(here[sha].length for sha in fresh),
        dropped_chunks=len(known.keys() - here.keys()),
    )
