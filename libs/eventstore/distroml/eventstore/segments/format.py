"""One sealed segment as bytes: a range of whole commits, hashed, and chained to the segment before it.

    DISTROML-SEGMENT 1 <bytes of header> <SHA-256 of header> (a line)
    <header: JSON>
    <body: zlib of commits (`distroml.eventstore.wire`)>

A segment's name says which revisions it covers, which segment it follows, and the SHA-256 of all its bytes: a listing
of names is enough to find the log (`distroml.eventstore.segments.chain`), and no byte of a segment is believed that
does not have its hash. Names sort by the last revision.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from distroml.eventstore.port import StoreDamaged
from distroml.eventstore.relay.port import OutboxEntry
from distroml.eventstore.wire import decode_commits, encode_commits

MAX_HEADER_BYTES = 16 * 1024 * 1024
_MAGIC = b"DISTROML-SEGMENT 1 "
_LINE = re.compile(rb"DISTROML-SEGMENT 1 (\d{1,9}) ([0-9a-f]{64})\n")
_NAME = re.compile(r"(\d{20})-(\d{20})-([0-9a-f]{16})-([0-9a-f]{64})")
_LINK_CHARS = 16
LINE_BYTES = len(_MAGIC) + 9 + 1 + 64 + 1
"""At most this long is a segment's first line."""

BEGINNING = "0" * _LINK_CHARS
"""What the first segment of a log follows."""


@dataclass(frozen=True, slots=True)
class Name:
    """A segment's name.

    Attributes:
        last: revision of its last commit.
        after: it holds every commit after this revision, up to and including `last`.
        previous: the link to the segment that ends at `after`, or `BEGINNING`.
        digest: SHA-256 of its bytes, in hex.
    """

    last: int
    after: int
    previous: str
    digest: str

    def __str__(self) -> str:
        return f"{self.last:020d}-{self.after:020d}-{self.previous}-{self.digest}"

    @property
    def link(self) -> str:
        """By which the next segment names this one."""
        return self.digest[:_LINK_CHARS]

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """Read what `str()` wrote; None where the text is no segment's name."""
        found = _NAME.fullmatch(text)
        return None if found is None else cls(int(found[1]), int(found[2]), found[3], found[4])


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a segment says of its body.

    Attributes:
        log: id of the log.
        after: see `Name`.
        last: see `Name`.
        previous: see `Name`.
        commits: how many.
        body_bytes: size of the body before compression.
        streams: for each stream in it, the first and the last version.
        merged: names of the segments that it stands for: it holds all that they do, and more.
    """

    log: str
    after: int
    last: int
    previous: str
    commits: int
    body_bytes: int
    streams: dict[str, tuple[int, int]]
    merged: list[str] = []


_header = msgspec.json.Decoder(Header)


def encode(
    log: str, after: int, previous: str, entries: Sequence[OutboxEntry], merged: Sequence[Name] = ()
) -> tuple[Name, bytes]:
    """The segment of these commits, which are all that there are after revision `after` up to the last of them.

    Args:
        log: id of the log.
        after: see `Name`.
        previous: see `Name`.
        entries: the commits.
        merged: segments whose commits are among them.

    Raises:
        ValueError: there are none, their revisions do not rise from `after`, or it does not begin where what it
            follows ends.
    """
    if (previous == BEGINNING) != (after == 0):
        raise ValueError(f"the first segment of a log, and no other, begins after revision 0; got {after}, {previous}")
    revisions = [after, *(entry.revision for entry in entries)]
    if len(revisions) < 2 or any(low >= high for low, high in pairwise(revisions)):
        raise ValueError(f"a segment holds commits of rising revisions after {after}, got {revisions[1:10]}")
    streams: dict[str, tuple[int, int]] = {}
    for entry in entries:
        for recorded in entry.events:
            first, _ = streams.get(recorded.stream, (recorded.version, 0))
            streams[recorded.stream] = first, recorded.version
    body = encode_commits(tuple(entries))
    header = Header(
        log, after, revisions[-1], previous, len(entries), len(body), streams, [str(name) for name in merged]
    )
    encoded = msgspec.json.encode(header)
    line = _MAGIC + b"%d %s\n" % (len(encoded), hashlib.sha256(encoded).hexdigest().encode())
    data = line + encoded + zlib.compress(body)
    return Name(revisions[-1], after, previous, hashlib.sha256(data).hexdigest()), data


def header_end(name: Name, start: bytes) -> int:
    """Where the header of a segment ends, told from its first `LINE_BYTES`; raises `StoreDamaged`."""
    return _header_place(name, start)[1]


def decode_header(name: Name, start: bytes, log: str) -> Header:
    """The header, from the segment's beginning up to at least `header_end`; raises `StoreDamaged`."""
    begin, end, digest = _header_place(name, start)
    encoded = start[begin:end]
    if len(encoded) != end - begin or hashlib.sha256(encoded).hexdigest().encode() != digest:
        raise _damaged(name, "its header does not have the hash it states")
    try:
        header = _header.decode(encoded)
    except msgspec.DecodeError as error:
        raise _damaged(name, f"its header is unreadable: {error}") from error
    if (header.log, header.last, header.after, header.previous) != (log, name.last, name.after, name.previous):
        raise _damaged(name, f"its header is of log {header.log!r}, {header.after} to {header.last}")
    return header


def _header_place(name: Name, start: bytes) -> tuple[int, int, bytes]:
    """Where the header begins and ends, and the hash that it must have."""
    line = _LINE.match(start)
    if line is None or int(line[1]) > MAX_HEADER_BYTES:
        raise _damaged(name, "it does not begin as a segment of a known format does")
    return line.end(), line.end() + int(line[1]), line[2]


def decode(name: Name, data: bytes, log: str) -> tuple[OutboxEntry, ...]:
    """The commits of a whole segment, after every check of its bytes; raises `StoreDamaged`."""
    if hashlib.sha256(data).hexdigest() != name.digest:
        raise _damaged(name, "its bytes do not have the hash in its name")
    header = decode_header(name, data, log)
    unpack = zlib.decompressobj()
    try:
        body = unpack.decompress(data[header_end(name, data) :], header.body_bytes + 1)
        entries = decode_commits(log, body)
    except (zlib.error, ValueError) as error:
        raise _damaged(name, f"its body is unreadable: {error}") from error
    if len(body) != header.body_bytes or len(entries) != header.commits or entries[-1].revision != name.last:
        raise _damaged(name, "its body is not what its header says")
    return entries


def _damaged(name: Name, why: str) -> StoreDamaged:
    return StoreDamaged(
        f"segment {name} cannot be trusted: {why}; bring the object back from a copy or an older version of the bucket"
    )
