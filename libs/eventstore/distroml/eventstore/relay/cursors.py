"""Where durable subscriptions stand, kept as keys of any state store."""

from __future__ import annotations

from distroml.eventstore.errors import translated
from distroml.eventstore.log import Place
from distroml.eventstore.port import StoreDamaged
from distroml.statestore import CasConflict, Entry, StateStore


class Cursors:
    """One key for each durable name; a cursor never moves back, whoever moves it."""

    def __init__(self, state: StateStore, prefix: str = "cursors/") -> None:
        self._state, self._prefix = state, prefix

    async def get(self, durable: str) -> Place | None:
        """Where the subscription stands; None where it has never been opened."""
        with translated():
            entry = await self._state.get(self._prefix + durable)
        return None if entry is None else _place(entry)

    async def open(self, durable: str, start: Place) -> Place:
        """Where the subscription stands: at `start` from now on where it stood nowhere."""
        key = self._prefix + durable
        with translated():
            while (entry := await self._state.get(key)) is None:
                try:
                    entry = await self._state.cas(key, _text(start), expected=0)
                except CasConflict:
                    continue
                break
        return _place(entry)

    async def move(self, durable: str, place: Place) -> None:
        """Move forward to a place; nothing where the cursor is there or past it already."""
        key = self._prefix + durable
        with translated():
            while True:
                entry = await self._state.get(key)
                if entry is not None and _place(entry) >= place:
                    return
                try:
                    await self._state.cas(key, _text(place), expected=0 if entry is None else entry.revision)
                except CasConflict:
                    continue
                return


def _text(place: Place) -> bytes:
    return f"{place[0]}.{place[1]}".encode()


def _place(entry: Entry) -> Place:
    revision, _, index = entry.value.partition(b".")
    try:
        return int(revision), int(index)
    except ValueError as error:
        raise StoreDamaged(
            f"the cursor {entry.key!r} holds {entry.value[:40]!r}, which is no place in a log; delete the key, and its"
            " reader begins again"
        ) from error
