"""Objects in a bucket of any S3 server; several processes and machines may share it.

A put is checked three times: the server refuses a body that is not what was signed, keeps the object's CRC-32 beside
it, and is asked afterwards what it has. A whole object that is read back is checked against that sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

from minio.error import S3Error

from distroml.objectstore.keys import check_key, check_range
from distroml.objectstore.port import (
    NoSuchObject,
    ObjectDamaged,
    ObjectExists,
    ObjectInfo,
    ObjectStoreDown,
    ObjectStoreRefused,
)
from distroml.objectstore.s3 import download
from distroml.objectstore.s3.bucket import Bucket
from distroml.objectstore.s3.client import S3Client
from distroml.objectstore.s3.errors import translated
from distroml.objectstore.s3.names import MAX_NAME_BYTES, beginning_of, can_begin_keys, key_of, name_of
from distroml.objectstore.s3.settings import S3Settings
from distroml.objectstore.s3.upload import Taken, Uploads

_FOLDER = "objects/"
_LISTED_AT_ONCE = 1000


class S3ObjectStore:
    """`ObjectStore` on S3. See the port for what it promises."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._folder = settings.prefix + _FOLDER
        self._client = S3Client(settings)
        self._uploads = Uploads(self._client, settings)
        self.bucket = Bucket(self._client, settings)
        """The bucket itself, for who opens the store."""

    def put(self, key: str, data: bytes | memoryview | BinaryIO | Path, *, if_absent: bool = False) -> ObjectInfo:
        """Write an object whole; durable when this returns, nothing under the key where it raises.

        Raises:
            ObjectExists: the key is taken and `if_absent`.
            ObjectStoreFull: no room, or a quota is reached.
            ObjectDamaged: the server did not get what was sent, again and again.
            ObjectStoreRefused: it won't serve us, or knows no conditional put and `if_absent`.
            ObjectStoreDown: it failed otherwise; whether the object was written is not known.
            ValueError: the key is malformed, or too long for this bucket's prefix.
        """
        name = self._name(key)
        with translated(self._settings, key):
            if if_absent:
                self.bucket.need_conditions(in_parts=False)
                # Spares sending what would be refused; who wins is decided at the end all the same.
                if self._head(name) is not None:
                    raise ObjectExists(key)
            try:
                size, tag = self._uploads.put(name, data, if_absent=if_absent, before_parts=self._before_parts)
            except Taken:
                raise ObjectExists(key) from None
            stored = self._head(name)
        if stored is None or _tag_of(stored) != tag:
            # Deleted or replaced since, by somebody else.
            return ObjectInfo(key, size, 0.0 if stored is None else _written_at(stored))
        info = _info(key, stored)
        if info.size != size:
            raise ObjectDamaged(f"{key!r} in {self._settings.place} has {info.size} bytes; {size} were written")
        return info

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`, none where that is past its end.

        Raises:
            NoSuchObject: the key is absent.
            ObjectDamaged: the whole was read, and is not what was written.
            ObjectStoreDown: no answer.
        """
        name = self._name(key)
        check_range(offset, length)
        with translated(self._settings, key):
            if length == 0:
                if self._head(name) is None:
                    raise NoSuchObject(key)
                return b""
            return download.read(self._client, name, key, offset, length)

    def stream(self, key: str, *, block: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in blocks, as it was when the first was taken.

        Raises:
            NoSuchObject: the key is absent.
            ObjectDamaged: after the last block: they are not what was written.
            ObjectStoreDown: no answer, or the connection broke and the object is another one by now.
        """
        name = self._name(key)
        with translated(self._settings, key):
            yield from download.stream(self._client, name, key, block)

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object; its time in whole seconds."""
        name = self._name(key)
        with translated(self._settings, key):
            found = self._head(name)
        return None if found is None else _info(key, found)

    def list(self, prefix: str = "", *, after: str = "", limit: int = _LISTED_AT_ONCE) -> list[ObjectInfo]:
        """Objects whose keys start with `prefix` and sort after `after`, in key order."""
        if limit < 1 or not can_begin_keys(prefix):
            return []
        begin = self._folder + beginning_of(prefix)
        start = self._folder + name_of(after) if after else ""
        found: list[ObjectInfo] = []
        with translated(self._settings, prefix):
            for one in self._client.list(begin, start, limit):
                key = key_of((one.object_name or "").removeprefix(self._folder))
                if key is not None:
                    written_at = 0.0 if one.last_modified is None else one.last_modified.timestamp()
                    found.append(ObjectInfo(key, one.size or 0, float(int(written_at))))
        return found

    def delete(self, key: str) -> None:
        """Remove the object; deleting what is absent is no error."""
        name = self._name(key)
        with translated(self._settings, key):
            try:
                self._client.delete(name)
            except S3Error as error:
                if error.code != "NoSuchKey":
                    raise

    def close(self) -> None:
        """Wait for puts that are on their way, and close the connections."""
        self._uploads.close()
        self._client.close()

    def _before_parts(self, if_absent: bool) -> None:
        if if_absent:
            self.bucket.need_conditions(in_parts=True)

    def _name(self, key: str) -> str:
        check_key(key)
        name = self._folder + name_of(key)
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"{key[:80]!r} is no object key here: with {self._folder!r} before it, it is longer than the "
                f"{MAX_NAME_BYTES} bytes that S3 allows"
            )
        return name

    def _head(self, name: str) -> Mapping[str, str] | None:
        try:
            return self._client.head(name)
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise


def _info(key: str, headers: Mapping[str, str]) -> ObjectInfo:
    return ObjectInfo(key, int(headers["content-length"]), _written_at(headers))


def _written_at(headers: Mapping[str, str]) -> float:
    return parsedate_to_datetime(headers["last-modified"]).timestamp()


def _tag_of(headers: Mapping[str, str]) -> str:
    return headers["etag"].strip('"')


def open_object_store(settings: S3Settings, *, deployment: str | None = None) -> S3ObjectStore:
    """The store in the bucket, after a look at it.

    With a `deployment`, as services have one, the bucket is claimed for it, and made where it is absent. Without, as
    in workers, it has to be there; but a server that doesn't answer just now keeps no training from beginning.

    Raises:
        ObjectStoreRefused: no bucket, wrong credentials, clock or endpoint, or another deployment's: says which.
        ObjectStoreDown: no answer, and it was to be claimed.
    """
    store = S3ObjectStore(settings)
    try:
        if deployment is None:
            store.bucket.check()
        else:
            store.bucket.claim(deployment)
    except ObjectStoreRefused:
        store.close()
        raise
    except ObjectStoreDown:
        if deployment is not None:
            store.close()
            raise
    return store
