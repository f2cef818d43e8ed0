"""How bytes become chunks and chunks become packs.

Chunks are cut inside each tensor slice at fixed multiples, so a tensor that did not change has the same chunks in
every save, whatever its neighbours did. Packs only decide how many chunks share an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

CHUNK_BYTES = 4 * 1024 * 1024
PACK_BYTES = 64 * 1024 * 1024


def chunk_hash(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in hex; the interpreter lock is free while larger data is hashed."""
    return sha256(data).hexdigest()


def chunk_bounds(length: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """(offset, length) of the chunks of `length` bytes: all of `chunk_bytes` but the last; none for no bytes."""
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
    for offset in range(0, length, chunk_bytes):
        yield offset, min(chunk_bytes, length - offset)


@dataclass(frozen=True, slots=True)
class Pack:
    """Chunks that share an object: `(index, offset in the pack)` of each, and the pack's size in bytes."""

    members: tuple[tuple[int, int], ...]
    size: int


def pack_chunks(lengths: Sequence[int], pack_bytes: int = PACK_BYTES) -> list[Pack]:
    """Fill packs with chunks in order; a chunk larger than `pack_bytes` gets a pack of its own."""
    packs: list[Pack] = []
    members: list[tuple[int, int]] = []
    size = 0
    for index, length in enumerate(lengths):
        if members and size + length > pack_bytes:
            packs.append(Pack(tuple(members), size))
            members, size = [], 0
        members.append((index, size))
        size += length
    if members:
        packs.append(Pack(tuple(members), size))
    return packs


def pack_name(hashes: Sequence[str]) -> str:
    """A name that the pack's content alone determines, made from its chunks' hashes: no byte is hashed twice."""
    return sha256("\n".join(hashes).encode()).hexdigest()[:32]
