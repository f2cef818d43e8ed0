"""What retired streams left behind, as objects: written whole, and believed only with the hash in their names.

    retired/LOG/STREAM/VERSION-REVISION-SHA256

Several objects of one stream may lie there, for it may have come back and been retired again, and who retires it may
be killed before etcd knows. Each was true of the stream at its revision of etcd, and a stream only goes forward; so
the one of the greatest version and revision is what a stream that is absent from etcd left behind. None is ever
changed or deleted, and no conditional put is needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

import msgspec

from distroml.eventstore.errors import on_objects
from distroml.eventstore.port import Sealed, StoreDamaged
from distroml.objectstore import NoSuchObject, ObjectStore

_WHAT = "retired streams"
_PAGE = 1000
_FORMAT = 1
_NAME = re.compile(r"(\d{20})-(\d{20})-([0-9a-f]{64})")
_READABLE_CHARS = 120
"""Of a stream's name so many are kept readable in an object's key; a longer one ends in its hash."""


class _Body(msgspec.Struct, array_like=True, frozen=True):
    format: int
    log: str
    stream: str
    version: int
    parts: dict[str, bytes]


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True, slots=True, order=True)
class _Name:
    version: int
    revision: int
    digest: str

    def __str__(self) -> str:
        return f"{self.version:020d}-{self.revision:020d}-{self.digest}"

    @classmethod
    def parse(cls, text: str) -> _Name | None:
        found = _NAME.fullmatch(text)
        return None if found is None else cls(int(found[1]), int(found[2]), found[3])


class Archive:
    """The retired streams of one log, in an object store. May be used by several tasks of one event loop.

    Its methods raise `StoreDown` and `StoreFull` for the object store's trouble.
    """

    def __init__(self, objects: ObjectStore, log_id: str) -> None:
        self._objects, self._log_id = objects, log_id
        self._prefix = f"retired/{log_id}/"

    async def put(self, stream: str, sealed: Sealed, *, revision: int) -> None:
        """Keep what a stream leaves behind, as it was at a revision of etcd; durable when this returns."""
        await on_objects(_WHAT, self._put, stream, sealed, revision)

    async def version(self, stream: str) -> int:
        """The version at which the stream was retired last, or would have been; 0 where it never was."""
        newest = await on_objects(_WHAT, self._newest, stream)
        return newest.version if newest else 0

    async def load(self, stream: str) -> Sealed | None:
        """What the stream left behind last; None where it was never retired. Raises `StoreDamaged`."""
        return await on_objects(_WHAT, self._load, stream)

    async def names(self, prefix: str, *, after: str, limit: int) -> list[str]:
        """Names of streams that have an object here, retired now or not, after the last name of the page before."""
        return await on_objects(_WHAT, self._names, prefix, after, limit)

    def _put(self, stream: str, sealed: Sealed, revision: int) -> None:
        data = _encoder.encode(_Body(_FORMAT, self._log_id, stream, sealed.version, dict(sealed.parts)))
        digest = hashlib.sha256(data).hexdigest()
        newest = self._newest(stream)
        # An earlier try that came no further has left it: trying again for hours leaves no more.
        if newest is None or (newest.version, newest.digest) != (sealed.version, digest):
            self._objects.put(f"{self._folder(stream)}{_Name(sealed.version, revision, digest)}", data)

    def _load(self, stream: str) -> Sealed | None:
        name = self._newest(stream)
        if name is None:
            return None
        key = f"{self._folder(stream)}{name}"
        body = self._body(key, name)
        if (body.stream, body.version) != (stream, name.version):
            raise _damaged(key, f"it is {body.stream} at version {body.version}")
        return Sealed(body.version, body.parts)

    def _body(self, key: str, name: _Name) -> _Body:
        try:
            data = self._objects.get(key)
        except NoSuchObject as error:
            raise _damaged(key, "it is missing") from error
        if hashlib.sha256(data).hexdigest() != name.digest:
            raise _damaged(key, "its bytes do not have the hash in its name")
        try:
            body = _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise _damaged(key, f"it is unreadable: {error}") from error
        if (body.format, body.log) != (_FORMAT, self._log_id):
            raise _damaged(key, f"it has format {body.format}, and is of log {body.log!r}")
        return body

    def _names(self, prefix: str, after: str, limit: int) -> list[str]:
        # Names of objects begin with digits: nothing of the last stream's sorts after this.
        start = f"{self._folder(after)}~" if after else ""
        found: list[str] = []
        last = ""
        for key in self._keys(self._prefix + _readable(prefix)[:_READABLE_CHARS], start):
            folder, _, text = key.removeprefix(self._prefix).partition("/")
            name = _Name.parse(text)
            if len(found) == limit:
                break
            if name is None or folder == last:
                continue
            last = folder
            stream = (
                unquote(folder.replace(":", "/")) if len(folder) <= _READABLE_CHARS else self._body(key, name).stream
            )
            if stream.startswith(prefix):
                found.append(stream)
        return found

    def _newest(self, stream: str) -> _Name | None:
        folder = self._folder(stream)
        names = (_Name.parse(key.removeprefix(folder)) for key in self._keys(folder, ""))
        return max((name for name in names if name is not None), default=None)

    def _keys(self, prefix: str, after: str) -> Iterator[str]:
        while page := self._objects.list(prefix, after=after, limit=_PAGE):
            yield from (info.key for info in page)
            after = page[-1].key

    def _folder(self, stream: str) -> str:
        return f"{self._prefix}{_quoted(stream)}/"


def _quoted(stream: str) -> str:
    """One part of an object's key for any stream, and for no other."""
    text = _readable(stream)
    if len(text) <= _READABLE_CHARS:
        return text
    return f"{text[:_READABLE_CHARS]}~{hashlib.sha256(stream.encode()).hexdigest()}"


def _readable(stream: str) -> str:
    return quote(stream, safe="/").replace("/", ":").replace(".", "%2E")


def _damaged(key: str, why: str) -> StoreDamaged:
    return StoreDamaged(
        f"object {key} cannot be trusted: {why}; bring it back from a copy or an older version of the bucket"
    )
