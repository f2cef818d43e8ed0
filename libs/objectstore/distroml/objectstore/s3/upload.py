"""One object on its way into the bucket: whole, or in parts of which several travel at once.

Whatever the object's size, a store holds `parallel` parts in memory, and two more for each put from a file: the one
that is being read and the one before it. A put leaves a mark in the object's metadata: where an answer was lost and the
request sent again, it tells whether the object that is there now is the one that was sent first.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from distroml.objectstore.port import ObjectStoreFull, ObjectStoreRefused
from distroml.objectstore.s3 import checksum
from distroml.objectstore.s3.client import IF_ABSENT, Buffer, S3Client
from distroml.objectstore.s3.settings import MAX_PARTS, S3Settings

MARK = "x-amz-meta-distroml-put"

_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")

Data = bytes | memoryview | BinaryIO | Path


class Taken(Exception):
    """A conditional put found the name taken, and not by itself."""


@dataclass(frozen=True, slots=True)
class _Part:
    tag: str
    crc: int
    size: int


class Uploads:
    """Puts objects; used by many threads at once."""

    def __init__(self, client: S3Client, settings: S3Settings) -> None:
        self._client, self._settings = client, settings
        self._pool = ThreadPoolExecutor(settings.parallel, thread_name_prefix="s3-part")
        self._room = threading.BoundedSemaphore(settings.parallel)

    def put(self, name: str, data: Data, *, if_absent: bool, before_parts: Callable[[bool], None]) -> tuple[int, str]:
        """Write an object; its size and its tag. Raises `Taken`, and what the client and `before_parts` raise."""
        with ExitStack() as opened:
            size = _size(data)
            source = opened.enter_context(data.open("rb")) if isinstance(data, Path) else data
            part_bytes = max(self._settings.part_bytes, -(-(size or 0) // MAX_PARTS))
            parts = _split(source, part_bytes)
            begun = deque(islice(parts, 2))
            headers = {"Content-Type": "application/octet-stream", MARK: secrets.token_hex(16)}
            if len(begun) == 1:
                return begun[0].nbytes, self._put_whole(name, begun[0], headers, if_absent)
            before_parts(if_absent)
            return self._put_parts(name, chain(_emptying(begun), parts), headers, if_absent)

    def close(self) -> None:
        """Wait for what is on its way."""
        self._pool.shutdown()

    def _put_whole(self, name: str, body: memoryview, headers: Mapping[str, str], if_absent: bool) -> str:
        with self._room:
            try:
                return self._client.put(name, body, {**headers, **IF_ABSENT} if if_absent else headers)
            except S3Error as error:
                if not if_absent or error.code not in _CONFLICTS:
                    raise
                return self._own(name, headers, error)

    def _put_parts(
        self, name: str, parts: Iterator[memoryview], headers: Mapping[str, str], if_absent: bool
    ) -> tuple[int, str]:
        upload = self._client.begin_parts(name, headers)
        on_way: deque[Future[_Part]] = deque()
        done: list[_Part] = []
        try:
            for number, part in enumerate(parts, 1):
                if number > MAX_PARTS:
                    raise ObjectStoreFull(f"{name!r} is larger than {MAX_PARTS} parts; give it as a file or as bytes")
                self._room.acquire()
                on_way.append(self._pool.submit(self._put_part, name, upload, number, part))
                # What has failed needs no more parts.
                while on_way and on_way[0].done():
                    done.append(on_way.popleft().result())
            while on_way:
                done.append(on_way.popleft().result())
            return sum(part.size for part in done), self._join(name, upload, done, headers, if_absent)
        except BaseException:
            wait(on_way)
            # It may be gone, or the server; what is left behind there, the bucket's own rules remove.
            with suppress(MinioException, HTTPError, ObjectStoreRefused):
                self._client.drop_parts(name, upload)
            raise

    def _put_part(self, name: str, upload: str, number: int, part: memoryview) -> _Part:
        try:
            crc = checksum.checksum(part)
            return _Part(self._client.put_part(name, upload, number, part, crc), crc, part.nbytes)
        finally:
            self._room.release()

    def _join(self, name: str, upload: str, parts: Sequence[_Part], headers: Mapping[str, str], if_absent: bool) -> str:
        crc = 0
        for part in parts:
            crc = checksum.combined(crc, part.crc, part.size)
        tags = [(part.tag, part.crc) for part in parts]
        try:
            return self._client.join_parts(name, upload, tags, crc, IF_ABSENT if if_absent else {})
        except S3Error as error:
            # The upload is gone where this request was sent again and the first one did it.
            if error.code not in (*_CONFLICTS, "NoSuchUpload"):
                raise
            return self._own(name, headers, error)

    def _own(self, name: str, headers: Mapping[str, str], error: S3Error) -> str:
        """The object's tag where it is the one with this mark; else raises `Taken`, or `error` where it isn't that."""
        found: Mapping[str, str] = {}
        with suppress(S3Error):
            found = self._client.head(name)
        if found.get(MARK) == headers[MARK]:
            return found["etag"].strip('"')
        if error.code == "PreconditionFailed" or (found and error.code in _CONFLICTS):
            raise Taken(name)
        raise error


def _size(data: Data) -> int | None:
    """How much it is, where that is known beforehand."""
    if isinstance(data, Path):
        return data.stat().st_size
    return memoryview(data).nbytes if isinstance(data, bytes | memoryview) else None


def _split(data: Buffer | BinaryIO, part_bytes: int) -> Iterator[memoryview]:
    """The data in parts, all but the last of `part_bytes`; at least one, which may be empty."""
    if isinstance(data, bytes | memoryview):
        view = memoryview(data).cast("B")
        yield view[:part_bytes]
        for start in range(part_bytes, view.nbytes, part_bytes):
            yield view[start : start + part_bytes]
        return
    part = _read(data, part_bytes)
    yield part
    while part.nbytes == part_bytes and (part := _read(data, part_bytes)).nbytes:
        yield part


def _emptying(parts: deque[memoryview]) -> Iterator[memoryview]:
    """The parts, held by nobody once they are taken."""
    while parts:
        yield parts.popleft()


def _read(file: BinaryIO, size: int) -> memoryview:
    """As much as `size` bytes, less only at the end: one `read` may return less anywhere."""
    block = file.read(size)
    if len(block) in (0, size):
        return memoryview(block)
    blocks, have = [block], len(block)
    while have < size and (block := file.read(size - have)):
        blocks.append(block)
        have += len(block)
    return memoryview(b"".join(blocks))
