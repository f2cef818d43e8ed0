"""What must reach another service, kept on disk until it has: exits, save reports, observations.

One append-only file of checksummed records. A record is in the file before it is sent, so it survives the agent's
end; a background `fdatasync` makes it survive the machine's. A torn tail is cut off on opening.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from distroml.observability import logger

log = logger(__name__)

_HEADER = struct.Struct(">II")
_COMPACT_BYTES = 1 << 20


class Entry(msgspec.Struct, frozen=True, tag="put"):
    """One report: `kind` says what `body` is, `group` whom it is about, `id` makes it idempotent."""

    kind: str
    group: str
    id: str
    body: bytes


class _Ack(msgspec.Struct, frozen=True, tag="ack"):
    id: str


_decoder: msgspec.msgpack.Decoder[Entry | _Ack] = msgspec.msgpack.Decoder(Entry | _Ack)
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class _Kept:
    entry: Entry
    size: int


class Spool:
    """Pending reports in the order in which they were put.

    At most `cap_bytes` are pending; past that the oldest go, which is said, and counted in `dropped`.
    """

    def __init__(self, path: Path, *, cap_bytes: int = 16 << 20) -> None:
        self._path = path
        self._cap = cap_bytes
        self._pending: dict[str, _Kept] = {}
        self._pending_bytes = 0
        self.dropped = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = self._load()

    def put(self, entry: Entry) -> None:
        """Keep `entry`; one with an id that is pending already is left as it is.

        Raises:
            OSError: the disk does not take it; it is kept in memory all the same.
        """
        if entry.id in self._pending:
            return
        record = _frame(entry)
        self._keep(entry, len(record))
        self._append(record)
        with contextlib.suppress(OSError):
            self._tidy()

    def ack(self, id: str) -> None:
        """The report arrived; forget it. Unknown ids are fine: acknowledgements repeat.

        Where the disk does not take it the next agent sends the report once more, which its reader knows already.
        """
        kept = self._pending.pop(id, None)
        if kept is None:
            return
        self._pending_bytes -= kept.size
        with contextlib.suppress(OSError):
            self._append(_frame(_Ack(id)))
            self._tidy()

    def forget(self, *, kind: str, group: str) -> None:
        """Drop what is pending of this kind and group: nobody will ask for it any more."""
        for entry in self.pending(kind=kind, group=group):
            self.ack(entry.id)

    def pending(self, *, kind: str = "", group: str = "") -> Iterator[Entry]:
        """Unacknowledged reports, oldest first."""
        for kept in list(self._pending.values()):
            if (not kind or kept.entry.kind == kind) and (not group or kept.entry.group == group):
                yield kept.entry

    def __contains__(self, id: str) -> bool:
        return id in self._pending

    def sync(self) -> None:
        """Make everything put so far survive a crash of the machine. May block; call it in a thread."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def _keep(self, entry: Entry, size: int) -> None:
        self._pending[entry.id] = _Kept(entry, size)
        self._pending_bytes += size
        while self._pending_bytes > self._cap and len(self._pending) > 1:
            oldest = next(iter(self._pending))
            self._pending_bytes -= self._pending.pop(oldest).size
            self.dropped += 1
            if is_told(self.dropped):
                log.warning("the spool is full: the oldest reports are dropped", dropped=self.dropped, bytes=self._cap)
            self._append(_frame(_Ack(oldest)))

    def _append(self, record: bytes) -> None:
        # At the known end and not at the file's: what a failed write left there is written over.
        written = os.pwrite(self._fd, record, self._size)
        if written != len(record):
            raise OSError(f"{self._path}: the disk took {written} of {len(record)} bytes")
        self._size += written

    def _load(self) -> int:
        data = self._path.read_bytes()
        at = 0
        while at + _HEADER.size <= len(data):
            length, checksum = _HEADER.unpack_from(data, at)
            body = data[at + _HEADER.size : at + _HEADER.size + length]
            if len(body) < length or zlib.crc32(body) != checksum:
                break
            try:
                record = _decoder.decode(body)
            except msgspec.MsgspecError:
                break
            at += _HEADER.size + length
            if isinstance(record, Entry):
                self._pending[record.id] = _Kept(record, _HEADER.size + length)
                self._pending_bytes += _HEADER.size + length
            elif (kept := self._pending.pop(record.id, None)) is not None:
                self._pending_bytes -= kept.size
        os.ftruncate(self._fd, at)
        return at

    def _tidy(self) -> None:
        if self._size > _COMPACT_BYTES and self._size > 2 * self._pending_bytes:
            self._compact()

    def _compact(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        data = b"".join(_frame(kept.entry) for kept in self._pending.values())
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(f"{temporary}: the disk did not take all of it")
            os.fdatasync(fd)
            os.rename(temporary, self._path)
        except OSError:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._size = fd, len(data)


def is_told(count: int) -> bool:
    """Whether something that happened for the `count`th time is worth a line: ever fewer of them."""
    return count & (count - 1) == 0


def _frame(record: Entry | _Ack) -> bytes:
    body = _encoder.encode(record)
    return _HEADER.pack(len(body), zlib.crc32(body)) + body
