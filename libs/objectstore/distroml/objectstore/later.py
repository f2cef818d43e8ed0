"""A store of objects whose server need not be there yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from distroml.objectstore.port import ObjectInfo, ObjectStore, ObjectStoreDown, ObjectStoreRefused


class LaterObjectStore:
    """`ObjectStore` that is opened by its first use, and as long as that fails by each one after it.

    A use while it cannot be opened raises what opening it raises, and has changed nothing.
    """

    def __init__(self, open: Callable[[], ObjectStore]) -> None:
        """Nothing is opened yet; `open` is called by one thread at a time, and not again once it returned."""
        self._open = open
        self._opening = threading.Lock()
        self._store: ObjectStore | None = None
        self._failures = 0
        self._failure: ObjectStoreDown | None = None

    @property
    def opened(self) -> bool:
        """Whether it is open."""
        return self._store is not None

    def open_if_there(self) -> str | None:
        """Open it now, or say why it cannot be yet; raises `ObjectStoreRefused` where waiting will not help."""
        try:
            self._there()
        except ObjectStoreRefused:
            raise
        except ObjectStoreDown as error:
            return str(error)
        return None

    def put(self, key: str, data: bytes | memoryview | BinaryIO | Path, *, if_absent: bool = False) -> ObjectInfo:
        """See the port."""
        return self._there().put(key, data, if_absent=if_absent)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """See the port."""
        return self._there().get(key, offset=offset, length=length)

    def stream(self, key: str, *, block: int = 1 << 20) -> Iterator[bytes]:
        """See the port."""
        yield from self._there().stream(key, block=block)

    def head(self, key: str) -> ObjectInfo | None:
        """See the port."""
        return self._there().head(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[ObjectInfo]:
        """See the port."""
        return self._there().list(prefix, after=after, limit=limit)

    def delete(self, key: str) -> None:
        """See the port."""
        self._there().delete(key)

    def close(self) -> None:
        """Release what the store holds, where it was opened."""
        if self._store is not None:
            self._store.close()

    def _there(self) -> ObjectStore:
        if self._store is not None:
            return self._store
        failures = self._failures
        with self._opening:
            if self._store is None:
                # Who waited while another one tried in vain is answered by that: else each would wait for all before.
                if self._failure is not None and self._failures != failures:
                    raise type(self._failure)(str(self._failure)) from self._failure
                try:
                    self._store = self._open()
                except ObjectStoreDown as error:
                    self._failures, self._failure = self._failures + 1, error
                    raise
            return self._store
