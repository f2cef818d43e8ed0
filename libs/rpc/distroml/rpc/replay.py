"""StateAt and Verify, the same in every service that owns streams."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceServicer
from distroml.events import Position
from distroml.eventstore import EventStore
from distroml.eventstore.draft import Repository
from distroml.eventstore.replay import mend, state_at, verify
from distroml.rpc.callers import caller
from distroml.rpc.errors import InvalidArgument, NotFound

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class StreamKind:
    """Streams of one kind, by the prefix of their names (`scheduler/job/`) and what folds them."""

    prefix: str
    repository: Repository[Any, Any, Any]


class ReplayServicer(ReplayServiceServicer):
    """Folds the service's own streams, on request, from the log."""

    def __init__(self, store: EventStore, kinds: Sequence[StreamKind], *, deployment: str) -> None:
        self._store, self._kinds, self._deployment = store, tuple(kinds), deployment

    async def StateAt(self, request: pb.StateAtRequest, context: Any) -> pb.StateAtResponse:
        """The folded state of streams as it was at a position; streams that did not exist yet are left out."""
        position = self._position(request.position) if request.position else await self._store.head()
        states: list[pb.StreamState] = []
        for name, kind in await self._select(request.streams, request.job):
            repository = kind.repository
            state, version = await state_at(self._store, repository.decider, repository.codec, name, position)
            if version:
                document = msgspec.json.encode(state, order="sorted").decode()
                states.append(pb.StreamState(stream=name, version=version, position=str(position), json=document))
        return pb.StateAtResponse(states=states, position=str(position))

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> AsyncIterator[pb.VerifyResponse]:
        """One answer per stream: what its stored state has that its events do not fold to, and the reverse."""
        for name, kind in await self._select(request.streams, request.job):
            repository = kind.repository
            found = await verify(self._store, repository.decider, repository.codec, repository.state_codec, [name])
            mended = bool(found) and request.mend and await self._mend(repository, name)
            version = await self._store.version(name)
            differences = [pb.Difference(path=one.field, folded=one.folded, stored=one.stored) for one in found]
            yield pb.VerifyResponse(
                stream=name, version=version, events=version, differences=differences, mended=mended
            )

    async def _mend(self, repository: Repository[Any, Any, Any], stream: str) -> bool:
        now_ms = time.time_ns() // 1_000_000
        return await mend(repository, stream, context=caller().context(deployment=self._deployment, time_ms=now_ms))

    def _position(self, text: str) -> Position:
        try:
            position = Position.parse(text)
        except ValueError as error:
            raise InvalidArgument([("position", str(error))]) from None
        if position.log != self._store.log_id:
            wrong = f"{text} belongs to log {position.log!r}, this is {self._store.log_id!r}; see `distroml events`"
            raise InvalidArgument([("position", wrong)])
        return position

    async def _select(self, names: Sequence[str], job: str) -> list[tuple[str, StreamKind]]:
        """The asked streams with their kinds; every stream of the service where none is asked for."""
        if names:
            return [(name, self._kind(name)) for name in names]
        if job:
            candidates = [(kind.prefix + job, kind) for kind in self._kinds if kind.prefix.endswith("/job/")]
            return [(name, kind) for name, kind in candidates if await self._store.version(name)]
        return [(name, kind) for kind in self._kinds for name in await self._names(kind.prefix)]

    def _kind(self, name: str) -> StreamKind:
        for kind in self._kinds:
            if name.startswith(kind.prefix):
                return kind
        ours = ", ".join(kind.prefix for kind in self._kinds)
        raise NotFound("NoSuchStream", f"{name!r} is no stream of this service; it has {ours}", stream=name)

    async def _names(self, prefix: str) -> list[str]:
        """Every stream below a prefix, those that were retired after the live ones."""
        found: list[str] = []
        for names in (self._store.streams, self._store.retired):
            last = ""
            while page := await names(prefix, after=last, limit=_PAGE):
                found += page
                last = page[-1]
        # One that was retired, or came back, between the two listings is in both.
        return list(dict.fromkeys(found))
