"""An event store that tells metrics how long its commits take and how far behind its readers are.

Lags compare the wall clocks of two machines: what they say is as good as those clocks agree.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from distroml.events import Position, Recorded
from distroml.eventstore import (
    CommandKnown,
    CommandRecord,
    Commit,
    CommitRefused,
    Committed,
    EventStore,
    Fenced,
    Guard,
    Sealed,
    StoreFull,
    Subscription,
    WrongExpectedVersion,
)
from distroml.observability import names
from distroml.observability.metrics import counter, gauge, histogram

_COMMIT = histogram(
    names.EVENTSTORE_COMMIT_SECONDS,
    "Seconds of a commit to the event store, by outcome; `conflict` is decided anew, `repeated` answered again, "
    "of `unknown` nothing came back.",
    (names.LABEL_OUTCOME,),
)
_EVENTS = counter(names.EVENTSTORE_EVENTS, "Events that this process committed.")
_DELIVERY = histogram(
    names.SUBSCRIPTION_DELIVERY_SECONDS,
    "Seconds from the decision on an event to its delivery to a subscription, a restart's backlog included.",
    (names.LABEL_DURABLE,),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
_LAG = gauge(
    names.SUBSCRIPTION_LAG_SECONDS,
    "Age of the event that a subscription's reader works on; 0 while it waits for the next one.",
    (names.LABEL_DURABLE,),
)

_OUTCOMES: Final[Mapping[type[Exception], str]] = {
    WrongExpectedVersion: "conflict",
    Fenced: "fenced",
    CommandKnown: "repeated",
    CommitRefused: "refused",
    StoreFull: "full",
}


class MeasuredEventStore:
    """`EventStore` by way of another one, measured."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        _COMMIT.labels("committed")

    @property
    def log_id(self) -> str:
        """Id of this log."""
        return self._store.log_id

    async def commit(self, commit: Commit) -> Committed:
        """As the store's own."""
        began, outcome = time.perf_counter(), "unknown"
        try:
            committed = await self._store.commit(commit)
            outcome = "committed"
        except tuple(_OUTCOMES) as error:
            outcome = next(name for kind, name in _OUTCOMES.items() if isinstance(error, kind))
            raise
        finally:
            _COMMIT.labels(outcome).observe(time.perf_counter() - began)
        _EVENTS.inc(len(committed.events))
        return committed

    async def retire(
        self, stream: str, *, version: int, keys: Sequence[str] = (), guards: Sequence[Guard] = ()
    ) -> None:
        """As the store's own."""
        await self._store.retire(stream, version=version, keys=keys, guards=guards)

    async def sealed(self, stream: str) -> Sealed | None:
        """As the store's own."""
        return await self._store.sealed(stream)

    async def read_stream(self, stream: str, *, after: int = 0, limit: int = 1000) -> Sequence[Recorded]:
        """As the store's own."""
        return await self._store.read_stream(stream, after=after, limit=limit)

    async def read(
        self, *, after: Position | None = None, streams: Sequence[str] = (), limit: int = 1000
    ) -> Sequence[Recorded]:
        """As the store's own."""
        return await self._store.read(after=after, streams=streams, limit=limit)

    async def head(self) -> Position:
        """As the store's own."""
        return await self._store.head()

    async def version(self, stream: str) -> int:
        """As the store's own."""
        return await self._store.version(stream)

    async def streams(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """As the store's own."""
        return await self._store.streams(prefix, after=after, limit=limit)

    async def retired(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """As the store's own."""
        return await self._store.retired(prefix, after=after, limit=limit)

    async def parts(self, prefix: str) -> tuple[Mapping[str, bytes], int]:
        """As the store's own."""
        return await self._store.parts(prefix)

    async def command(self, id: str) -> CommandRecord | None:
        """As the store's own."""
        return await self._store.command(id)

    def subscribe(self, durable: str, *, streams: Sequence[str] = (), start: Position | None = None) -> Subscription:
        """As the store's own, measured under its name."""
        return _MeasuredSubscription(self._store.subscribe(durable, streams=streams, start=start), durable)

    async def close(self) -> None:
        """As the store's own."""
        await self._store.close()


class _MeasuredSubscription:
    def __init__(self, subscription: Subscription, durable: str) -> None:
        self._subscription, self._durable = subscription, durable
        self._decided_ms = 0
        # The newest subscription of a name tells for it: one that crashed is followed by another.
        _LAG.labels(durable).set_function(self._lag_s)

    async def __aiter__(self) -> AsyncIterator[Recorded]:
        delivery = _DELIVERY.labels(self._durable)
        try:
            async for recorded in self._subscription:
                self._decided_ms = recorded.context.time_ms
                delivery.observe(self._lag_s())
                yield recorded
                self._decided_ms = 0
        finally:
            self._decided_ms = 0

    async def ack(self, recorded: Recorded) -> None:
        """Everything up to and including `recorded` is done with."""
        await self._subscription.ack(recorded)

    async def close(self) -> None:
        """Stop; the cursor stays."""
        await self._subscription.close()

    def _lag_s(self) -> float:
        return max(0.0, time.time() - self._decided_ms / 1000) if self._decided_ms else 0.0
