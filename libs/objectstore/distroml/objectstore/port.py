"""The object store port: immutable blobs by key, with conditional put.

Blocking and thread-safe: its users are worker threads of the training process (checkpoint writers) as much as
services, which call it through `asyncio.to_thread`. The port promises what S3 keeps: a put is atomic and durable
when it returns, there is no rename, listing is in key order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


class ObjectStoreError(Exception):
    """Root of what an object store raises.

    ObjectStoreError
    ├── NoSuchObject       the key is absent
    ├── ObjectExists       a conditional put found the key taken
    ├── ObjectDamaged      the bytes do not have the hash that was expected
    ├── ObjectStoreFull    there is no room; nothing was written
    └── ObjectStoreDown    the back end did not answer
        └── ObjectStoreRefused  it answers and will not serve us until somebody changes something
    """


class NoSuchObject(ObjectStoreError):
    """The key is absent."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no object {key!r}")
        self.key = key


class ObjectExists(ObjectStoreError):
    """A conditional put found the key taken."""

    def __init__(self, key: str) -> None:
        super().__init__(f"object {key!r} exists already")
        self.key = key


class ObjectDamaged(ObjectStoreError):
    """The bytes do not have the hash that was expected."""


class ObjectStoreFull(ObjectStoreError):
    """There is no room; nothing was written."""


class ObjectStoreDown(ObjectStoreError):
    """The back end cannot be reached or failed in the middle."""


class ObjectStoreRefused(ObjectStoreDown):
    """The back end will not serve us as we are: credentials, clock, owner, protocol. Trying again does not help."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key, size in bytes, and when it was written (the store's clock, Unix seconds)."""

    key: str
    size: int
    written_at: float


class ObjectStore(Protocol):
    """Immutable blobs by key. Keys are `/`-separated names; no part is empty, `.` or `..`."""

    def put(self, key: str, data: bytes | memoryview | BinaryIO | Path, *, if_absent: bool = False) -> ObjectInfo:
        """Write an object whole; durable when this returns.

        Args:
            key: where.
            data: the bytes, an open binary file read to its end, or a file's path.
            if_absent: refuse where the key is taken, decided atomically by the store.

        Raises:
            ObjectExists, ObjectStoreFull, ObjectStoreDown: nothing was written under the key.
            ValueError: the key is malformed.
        """
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`, all or `length` of them; raises `NoSuchObject`."""
        ...

    def stream(self, key: str, *, block: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in blocks; raises `NoSuchObject` at the first one."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None where the key is absent."""
        ...

    def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[ObjectInfo]:
        """Objects whose keys start with `prefix` and sort after `after`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; deleting what is absent is no error."""
        ...

    def close(self) -> None:
        """Release what the store holds."""
        ...
