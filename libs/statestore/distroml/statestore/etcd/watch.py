"""Watching a range of keys: every change after a revision once, in order, through restarts and changes of member.

A watch that loses its member goes on from the last revision it has seen, on the next one. It raises `Compacted`
where etcd has meanwhile forgotten what came after that, and then only a new listing says what holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from grpc.aio import AioRpcError

from distroml.statestore.etcd import wire
from distroml.statestore.etcd.client import EtcdClient, pause
from distroml.statestore.etcd.errors import Verdict, judge, translate
from distroml.statestore.etcd.messages import NO_DELETE, WATCH, Event, WatchCreateRequest, WatchRequest, WatchResponse
from distroml.statestore.etcd.ops import revision_of
from distroml.statestore.port import Compacted, StateStoreDown

log = logging.getLogger(__name__)

_PREPARE_S = 2.0


@dataclass(slots=True)
class _Place:
    """How far a watch has come, and what it holds of a revision that may not be whole yet."""

    after: int
    held: list[Event] = field(default_factory=list[Event])

    def take(self, response: WatchResponse) -> list[list[Event]]:
        """The revisions that `response` completes, oldest first."""
        events = [*self.held, *response.events]
        # A response in fragments may cut a revision in two: what might go on in the next one is held back.
        self.held = [event for event in events if response.fragment and _revision(event) == _revision(events[-1])]
        whole = [list(group) for _, group in groupby(events[: len(events) - len(self.held)], key=_revision)]
        if whole:
            self.after = _revision(whole[-1][0])
        elif not response.events and not self.held and not response.created:
            # Only a sign of progress: nothing in the range changed up to this revision.
            self.after = max(self.after, revision_of(response))
        return whole


async def watch(
    client: EtcdClient,
    key: bytes,
    range_end: bytes = b"",
    *,
    after: int,
    ended: asyncio.Event | None = None,
    puts_only: bool = False,
) -> AsyncIterator[Sequence[Event]]:
    """Changes after a revision of a key, or of a range, one batch per revision; until `ended` is set.

    It is set by the closing of the client where none is given. With `puts_only`, deletions are not told.

    Raises:
        Compacted: changes after `after`, or after the last one given, are no longer kept.
        StateStoreDown: etcd refuses, and would do so again; an outage alone is waited through.
    """
    place = _Place(after)
    ended = ended or client.closed
    tries = 0
    while not ended.is_set():
        members = client.members
        member = members.current
        place.held.clear()
        try:
            await members.prepare(member, _PREPARE_S)
            request = WatchCreateRequest(
                key=key,
                range_end=range_end,
                start_revision=place.after + 1,
                progress_notify=True,
                filters=NO_DELETE if puts_only else 0,
                fragment=True,
            )
            token = members.token
            async with _Stream(ended, member.stream(WATCH, token)) as stream:
                await stream.begin(WatchRequest(create_request=request))
                async for response in stream:
                    if response.canceled:
                        _check(response, member.url, place.after)
                        members.forget_token(token)
                        break
                    tries = 0
                    for batch in place.take(response):
                        yield batch
        except (asyncio.CancelledError, StateStoreDown):
            task = asyncio.current_task()
            if not ended.is_set() or (task and task.cancelling()):
                raise
        except ValueError as error:
            raise StateStoreDown(f"{member.url} gives answers that are not etcd's ({error})") from error
        except AioRpcError as error:
            verdict = judge(error)
            if verdict is Verdict.REFUSED:
                raise translate(error, member.url) from error
            if verdict is Verdict.STALE_TOKEN:
                members.forget_token(members.token)
            if not tries:
                log.warning("a watch lost etcd at %s and goes on elsewhere: %s", member.url, error.details())
        if not ended.is_set():
            members.failed(member)
            tries += 1
            await pause(tries, ended)


class _Stream:
    """Responses of one call, until it or the watch ends."""

    def __init__(self, ended: asyncio.Event, call: Any) -> None:
        self._ended, self._call = ended, call
        self._ending = asyncio.ensure_future(ended.wait())

    async def __aenter__(self) -> _Stream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._ending.cancel()
        self._call.cancel()

    async def begin(self, request: WatchRequest) -> None:
        await self._call.write(wire.encode(request))

    async def __aiter__(self) -> AsyncIterator[WatchResponse]:
        while True:
            reading: asyncio.Future[object] = asyncio.ensure_future(self._call.read())
            try:
                await asyncio.wait((reading, self._ending), return_when=asyncio.FIRST_COMPLETED)
            finally:
                reading.cancel()
            if self._ended.is_set():
                # The channel may be closed by now, and its failure is nobody's concern.
                await asyncio.gather(reading, return_exceptions=True)
                return
            data = reading.result()
            if not isinstance(data, bytes):
                return
            yield wire.decode(WatchResponse, data)


def _check(response: WatchResponse, url: str, after: int) -> None:
    """Raise where the end of a watch is for good; else it is begun again, authenticated anew."""
    if response.compact_revision:
        raise Compacted(
            f"etcd has compacted changes up to revision {response.compact_revision}; asked after {after}: list again"
        )
    if "permission denied" in response.cancel_reason:
        raise StateStoreDown(f"etcd at {url} lets this user watch nothing there; grant its role `read` on the prefix")
    log.warning("etcd at %s ended a watch, which is begun again: %s", url, response.cancel_reason)


def _revision(event: Event) -> int:
    assert event.kv is not None, "etcd names the key of every event"
    return event.kv.mod_revision
