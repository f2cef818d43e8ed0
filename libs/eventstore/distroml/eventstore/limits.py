"""The bounds of a commit, checked before anything is written; the same for every back end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from distroml.eventstore.port import (
    MAX_COMMIT_BYTES,
    MAX_COMMIT_OPERATIONS,
    MAX_EVENT_BYTES,
    MAX_SEALED_BYTES,
    MAX_SEALED_PARTS,
    Commit,
    CommitRefused,
    Guard,
    Sealed,
)
from distroml.statestore.keyspace import check_key


def check(commit: Commit) -> None:
    """Raise `CommitRefused` where `commit` is past a bound or contradicts itself.

    Operations are what an etcd transaction would hold: one for each event, each stream, each part, and the command
    record. Guards and expected versions are its comparisons, and have the same bound.
    """
    events = [event for append in commit.appends for event in append.events]
    for event in events:
        if len(event.data) > MAX_EVENT_BYTES:
            _refuse(
                f"event {event.type} has {len(event.data)} bytes, at most {MAX_EVENT_BYTES} fit;"
                " store the rest as an object and name it by its hash"
            )
    operations = len(events) + len(commit.appends) + len(commit.parts) + (commit.command is not None)
    if operations > MAX_COMMIT_OPERATIONS:
        _refuse(
            f"the commit has {operations} operations (events, streams, parts, command),"
            f" at most {MAX_COMMIT_OPERATIONS} fit; decide in smaller steps"
        )
    if len(commit.guards) + len(commit.appends) > MAX_COMMIT_OPERATIONS:
        _refuse(f"the commit compares {len(commit.guards) + len(commit.appends)} keys, at most {MAX_COMMIT_OPERATIONS}")
    if (size := _bytes(commit)) > MAX_COMMIT_BYTES:
        _refuse(
            f"the commit has {size} bytes, at most {MAX_COMMIT_BYTES} fit; write changed parts only, or smaller parts"
        )
    _once((append.stream for append in commit.appends), "stream")
    _once((part.key for part in commit.parts), "key")
    _check_guards(commit.guards)
    for name in (*(append.stream for append in commit.appends), *(part.key for part in commit.parts)):
        try:
            check_key(name)
        except ValueError as error:
            raise CommitRefused(str(error)) from error


def check_retiring(version: int, keys: Sequence[str], guards: Sequence[Guard]) -> None:
    """Raise `CommitRefused` where retiring can never succeed with these."""
    if version < 1:
        _refuse(f"a stream is retired at its version, which is 1 at the least; got {version}")
    if len(keys) > MAX_SEALED_PARTS or len(guards) > MAX_COMMIT_OPERATIONS:
        _refuse(
            f"retiring takes {MAX_SEALED_PARTS} keys and {MAX_COMMIT_OPERATIONS} guards at most;"
            f" got {len(keys)} and {len(guards)}"
        )
    _check_guards(guards)


def check_sealed(stream: str, parts: Mapping[str, bytes]) -> None:
    """Raise `CommitRefused` where what a stream would leave behind is more than a commit could bring back."""
    size = sum(len(key) + len(value) for key, value in parts.items())
    if len(parts) > MAX_SEALED_PARTS or size > MAX_SEALED_BYTES:
        _refuse(
            f"{stream} has {len(parts)} parts of {size} bytes, and no more than {MAX_SEALED_PARTS} of"
            f" {MAX_SEALED_BYTES} can be retired, for one commit must be able to bring them back; it stays live"
        )


def check_coming_back(streams: Iterable[Sealed]) -> None:
    """Raise `CommitRefused` where one commit would bring back more than one transaction takes beside the largest."""
    found = list(streams)
    parts = sum(len(sealed.parts) for sealed in found)
    size = sum(len(key) + len(value) for sealed in found for key, value in sealed.parts.items())
    if parts > MAX_SEALED_PARTS or size > MAX_SEALED_BYTES:
        _refuse(
            f"the commit would bring back {len(found)} retired streams with {parts} parts of {size} bytes, and"
            f" {MAX_SEALED_PARTS} of {MAX_SEALED_BYTES} is the most; decide on fewer streams at once"
        )


def _check_guards(guards: Sequence[Guard]) -> None:
    for guard in guards:
        if (guard.revision is None) == (guard.value is None):
            _refuse(f"the guard of {guard.key!r} must name a revision or a value, and only one of them")


def _bytes(commit: Commit) -> int:
    events = sum(
        len(event.data) + len(event.type) + len(event.id) + len(append.stream)
        for append in commit.appends
        for event in append.events
    )
    parts = sum(len(part.key) + len(part.value or b"") for part in commit.parts)
    return events + parts + (len(commit.command.answer) if commit.command else 0)


def _once(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(f"the commit writes {what} {name!r} twice")
        seen.add(name)


def _refuse(why: str) -> None:
    raise CommitRefused(why)
