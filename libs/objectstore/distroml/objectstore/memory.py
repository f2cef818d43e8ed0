"""Objects in this process's memory: for `distroml demo`, tests, and as the plainest back end."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from distroml.objectstore.keys import check_key, check_range
from distroml.objectstore.port import NoSuchObject, ObjectExists, ObjectInfo


class MemoryObjectStore:
    """`ObjectStore` as a dictionary. See the port for what it promises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[ObjectInfo, bytes]] = {}
        self._keys: list[str] = []

    def put(self, key: str, data: bytes | memoryview | BinaryIO | Path, *, if_absent: bool = False) -> ObjectInfo:
        """Write an object whole; raises `ObjectExists` or `ValueError`."""
        check_key(key)
        content = _content(data)
        info = ObjectInfo(key, len(content), time.time())
        with self._lock:
            if key not in self._objects:
                insort(self._keys, key)
            elif if_absent:
                raise ObjectExists(key)
            self._objects[key] = info, content
        return info

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`; none where that is past its end."""
        check_key(key)
        check_range(offset, length)
        with self._lock:
            if key not in self._objects:
                raise NoSuchObject(key)
            content = self._objects[key][1]
        return content[offset:] if length is None else content[offset : offset + length]

    def stream(self, key: str, *, block: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in blocks, as it was when the first was taken."""
        content = self.get(key)
        for start in range(0, len(content), block):
            yield content[start : start + block]

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object."""
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        return None if found is None else found[0]

    def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[ObjectInfo]:
        """Objects whose keys start with `prefix` and sort after `after`, in key order."""
        with self._lock:
            start = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
            end = bisect_left(self._keys, prefix + "\U0010ffff", lo=start)
            return [self._objects[key][0] for key in self._keys[start : min(end, start + limit)]]

    def delete(self, key: str) -> None:
        """Remove the object."""
        check_key(key)
        with self._lock:
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]

    def close(self) -> None:
        """Nothing to release; the objects stay as long as this store."""


def _content(data: bytes | memoryview | BinaryIO | Path) -> bytes:
    if isinstance(data, Path):
        return data.read_bytes()
    return bytes(data) if isinstance(data, bytes | memoryview) else data.read()


def open_object_store() -> MemoryObjectStore:
    """A new, empty store."""
    return MemoryObjectStore()
