"""Chunks into packs into the object store, one pack in the making at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import BinaryIO, cast

from distroml.manifest import ChunkRef, KnownChunk, ObjectRef, chunk_bounds, chunk_hash, pack_name
from distroml.objectstore import ObjectStore


class SaveCancelled(Exception):
    """The save is not wanted any more."""


class PackWriter:
    """Cuts bytes into chunks, hashes them, and puts those that are not known yet.

    The memory behind the given views must not change until `flush` returned.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        *,
        known: Mapping[str, KnownChunk],
        chunk_bytes: int,
        pack_bytes: int,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._store, self._prefix, self._known = store, prefix, known
        self._chunk_bytes, self._pack_bytes = chunk_bytes, pack_bytes
        self._cancelled = cancelled or (lambda: False)
        self._objects: list[ObjectRef] = []
        self._base_objects: dict[str, int] = {}
        self._placed: dict[str, ChunkRef] = {}
        self._pack: list[tuple[str, memoryview]] = []
        self._pack_size = 0
        self._slot = 0
        self.bytes_written = 0
        self.bytes_reused = 0

    @property
    def objects(self) -> tuple[ObjectRef, ...]:
        """Every object the chunks lie in; complete after `flush`."""
        return tuple(self._objects)

    def add(self, data: memoryview) -> tuple[ChunkRef, ...]:
        """Chunks of `data`, in order; known ones and repeated ones are referred to, not written."""
        return tuple(
            self._add(data[start : start + length]) for start, length in chunk_bounds(len(data), self._chunk_bytes)
        )

    def flush(self) -> None:
        """Put the pack in the making."""
        if not self._pack:
            return
        if self._cancelled():
            raise SaveCancelled
        key = self._prefix + pack_name([sha256 for sha256, _ in self._pack])
        # A pack of one piece goes as it is; several are read piece by piece, so no pack is ever copied whole.
        single = len(self._pack) == 1
        source = (
            self._pack[0][1] if single else cast(BinaryIO, io.BufferedReader(Pieces([view for _, view in self._pack])))
        )
        self._store.put(key, source)
        self._objects[self._slot] = ObjectRef(key, self._pack_size)
        self.bytes_written += self._pack_size
        self._pack, self._pack_size = [], 0

    def _add(self, view: memoryview) -> ChunkRef:
        if self._cancelled():
            raise SaveCancelled
        sha256 = chunk_hash(view)
        if (placed := self._placed.get(sha256)) is not None:
            return placed
        known = self._known.get(sha256)
        ref = (
            self._reuse(sha256, known)
            if known is not None and known.length == len(view)
            else self._pack_in(sha256, view)
        )
        self._placed[sha256] = ref
        return ref

    def _reuse(self, sha256: str, known: KnownChunk) -> ChunkRef:
        index = self._base_objects.get(known.object.key)
        if index is None:
            index = self._base_objects[known.object.key] = len(self._objects)
            self._objects.append(known.object)
        self.bytes_reused += known.length
        return ChunkRef(index, known.offset, known.length, sha256)

    def _pack_in(self, sha256: str, view: memoryview) -> ChunkRef:
        if self._pack and self._pack_size + len(view) > self._pack_bytes:
            self.flush()
        if not self._pack:
            # The pack's key comes from all its hashes, so its place in the list is kept until it is known.
            self._slot = len(self._objects)
            self._objects.append(ObjectRef("pending", 0))
        ref = ChunkRef(self._slot, self._pack_size, len(view), sha256)
        self._pack.append((sha256, view))
        self._pack_size += len(view)
        return ref


class Pieces(io.RawIOBase):
    """Several views read as one file."""

    def __init__(self, views: list[memoryview]) -> None:
        super().__init__()
        self._views = views
        self._index = 0
        self._offset = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill `buffer` across pieces; 0 at the end."""
        filled = 0
        while filled < len(buffer) and self._index < len(self._views):
            view = self._views[self._index]
            count = min(len(buffer) - filled, len(view) - self._offset)
            buffer[filled : filled + count] = view[self._offset : self._offset + count]
            filled += count
            self._offset += count
            if self._offset == len(view):
                self._index, self._offset = self._index + 1, 0
        return filled
