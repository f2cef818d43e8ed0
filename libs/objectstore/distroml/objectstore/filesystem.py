"""Objects as files below one folder; several processes and threads may share it.

A put writes a temporary file, syncs it, gives it its name in one step (`link` where the key must be absent, else
`rename`) and syncs the folders: under a key there is either nothing, the old object or the whole new one, also
after a crash. Keys are paths, with objects' names ending in `@`, so that `a` and `a/b` can both exist.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from distroml.objectstore.keys import check_key, check_range
from distroml.objectstore.port import (
    NoSuchObject,
    ObjectExists,
    ObjectInfo,
    ObjectStoreDown,
    ObjectStoreError,
    ObjectStoreFull,
)
from distroml.objectstore.scratch import Scratch, sync_folder
from distroml.objectstore.walk import object_name, objects_below, parts_of
from distroml.statestore.failpoint import hit

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MOVED = frozenset({errno.ENOENT, errno.ENOTEMPTY})
_TRIES = 100
_FOLDERS_REMEMBERED = 10_000


class FilesystemObjectStore:
    """`ObjectStore` on a local or shared POSIX file system. See the port for what it promises."""

    def __init__(self, root: Path) -> None:
        self._root = root / "objects"
        self._scratch = Scratch(root / "tmp")
        self._durable_folders = {self._root}
        self.collect_leftovers()

    def put(self, key: str, data: bytes | memoryview | BinaryIO | Path, *, if_absent: bool = False) -> ObjectInfo:
        """Write an object whole; durable when this returns, nothing under the key where it raises.

        Raises:
            ObjectExists: the key is taken and `if_absent`.
            ObjectStoreFull: no room, quota reached, or larger than a file may be.
            ObjectStoreDown: the file system failed otherwise; for its last sync the outcome is not known.
            ValueError: the key is malformed.
        """
        path = self._path(key)
        if if_absent and path.exists():
            raise ObjectExists(key)
        if isinstance(data, Path):
            with data.open("rb") as file:
                return self._put(key, path, file, if_absent)
        return self._put(key, path, data, if_absent)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`, none where that is past its end; raises `NoSuchObject`."""
        check_range(offset, length)
        with self._opened(key) as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def stream(self, key: str, *, block: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in blocks, as it was when the first was taken; raises `NoSuchObject`."""
        with self._opened(key) as file:
            while data := file.read(block):
                yield data

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object."""
        path = self._path(key)
        with _translated(key):
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[ObjectInfo]:
        """Objects whose keys start with `prefix` and sort after `after`, in key order.

        Reads only the folders on the way to this page. An object put or deleted meanwhile may or may not appear.
        """
        found: list[ObjectInfo] = []
        if limit < 1:
            return found
        with _translated(prefix):
            for key, entry in objects_below(self._root, prefix, after):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted since its folder was read
                    continue
                found.append(ObjectInfo(key, status.st_size, status.st_mtime))
                if len(found) == limit:
                    break
        return found

    def delete(self, key: str) -> None:
        """Remove the object, and the folders it leaves empty."""
        path = self._path(key)
        with _translated(key):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            sync_folder(path.parent)
            for folder in path.parents:
                if folder == self._root:
                    break
                try:
                    folder.rmdir()
                except OSError:  # not empty, or another delete was faster
                    break

    def collect_leftovers(self) -> int:
        """Remove temporary files whose writers are dead; returns how many. Done at opening."""
        with _translated("tmp"):
            self._root.mkdir(parents=True, exist_ok=True)
            return self._scratch.collect()

    def close(self) -> None:
        """Nothing is held between calls."""

    def _put(self, key: str, path: Path, data: bytes | memoryview | BinaryIO, if_absent: bool) -> ObjectInfo:
        with _translated(key), self._scratch.file() as (file, temporary):
            hit("object.put")
            _copy(data, file)
            hit("object.put")
            file.flush()
            os.fsync(file.fileno())
            hit("object.put")
            self._name(temporary, path, key, if_absent)
            hit("object.put")
            sync_folder(path.parent)
            hit("object.put")
            status = os.fstat(file.fileno())
            return ObjectInfo(key, status.st_size, status.st_mtime)

    def _name(self, temporary: Path, path: Path, key: str, if_absent: bool) -> None:
        """Give the finished file its name; again where a delete removed the emptied folder in between."""
        for _ in range(_TRIES):
            try:
                self._make_folders(path.parent)
                hit("object.put")
                if if_absent:
                    os.link(temporary, path)
                else:
                    temporary.rename(path)
                return
            except FileExistsError as error:
                raise ObjectExists(key) from error
            except OSError as error:
                if error.errno not in _MOVED or not temporary.exists():
                    raise
        raise ObjectStoreDown(f"{key!r}: its folder was removed {_TRIES} times while it was written")

    def _make_folders(self, folder: Path) -> None:
        if folder in self._durable_folders and folder.is_dir():
            return
        self._make_folders(folder.parent)
        # Not `exist_ok`: that looks again, and raises where a delete removed the folder in between.
        with suppress(FileExistsError):
            folder.mkdir()
        # Also where another process made it: that one may not have come to its sync yet.
        sync_folder(folder.parent)
        if len(self._durable_folders) >= _FOLDERS_REMEMBERED:
            self._durable_folders = {self._root}
        self._durable_folders.add(folder)

    @contextmanager
    def _opened(self, key: str) -> Generator[BinaryIO]:
        path = self._path(key)
        with _translated(key):
            try:
                file = path.open("rb")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise NoSuchObject(key) from error
            with file:
                yield file

    def _path(self, key: str) -> Path:
        check_key(key)
        *folders, name = parts_of(key)
        return self._root.joinpath(*folders, object_name(name))


def _copy(data: bytes | memoryview | BinaryIO, file: BinaryIO) -> None:
    if isinstance(data, bytes | memoryview):
        file.write(data)
        return
    while block := data.read(1 << 20):
        file.write(block)


@contextmanager
def _translated(key: str) -> Generator[None]:
    """Raise the port's error for what the file system raised."""
    try:
        yield
    except ObjectStoreError:
        raise
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno in _FULL:
            raise ObjectStoreFull(f"no room for {key!r} ({text}); nothing was written under it") from error
        raise ObjectStoreDown(f"{key!r}: {text} ({error.filename})") from error


def open_object_store(root: Path | str) -> FilesystemObjectStore:
    """The store below the folder `root`, which is made where it is absent; raises `ObjectStoreDown`."""
    return FilesystemObjectStore(Path(root))
