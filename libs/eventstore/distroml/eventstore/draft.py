"""A stream's state in memory, on its way from the store through decisions into a commit."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Generic, TypeVar

import msgspec

from distroml.events import Codec, Decider
from distroml.eventstore.codec import StateCodec
from distroml.eventstore.port import Append, EventStore, Part, state_prefix

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")

_HEADER = "@"
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Header:
    """What is stored beside a state's parts: the stream's version, and the hash of the `evolve` that made it."""

    version: int
    evolve: str


@dataclass(frozen=True, slots=True)
class Write:
    """A draft's share of a commit."""

    append: Append
    parts: tuple[Part, ...]


def evolve_hash(*modules: ModuleType) -> str:
    """SHA-256 over the source of the modules that `evolve` and its state are written in, in the given order."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Draft(Generic[S, C, E]):
    """A stream's state, with the events decided since it was loaded.

    Attributes:
        stream: its name.
        version: the committed version it was loaded at.
        state: after `events`.
        events: decided, not yet committed.
        stored: the state's keys as they stand in the store, or were sealed.
    """

    repository: Repository[S, C, E]
    stream: str
    version: int
    state: S
    events: tuple[E, ...]
    stored: Mapping[str, bytes]

    def decide(self, command: C) -> Draft[S, C, E]:
        """The draft after `command`; raises `Rejection`."""
        decider = self.repository.decider
        events = tuple(decider.decide(self.state, command))
        return replace(self, state=decider.fold(events, since=self.state), events=self.events + events)

    def write(self, id_of: Callable[[str, int], str]) -> Write:
        """What to commit: the events under ids of (stream, version), and the parts of the state that changed."""
        encoded = tuple(
            self.repository.codec.encode(event, id=id_of(self.stream, version))
            for version, event in enumerate(self.events, start=self.version + 1)
        )
        append = Append(self.stream, self.version, encoded)
        return Write(append, self._changed() if encoded else ())

    def mended(self) -> Write:
        """What makes the stored parts those of this state, without any event."""
        return Write(Append(self.stream, self.version, ()), self._changed())

    def _changed(self) -> tuple[Part, ...]:
        prefix = state_prefix(self.stream)
        header = Header(self.version + len(self.events), self.repository.evolve_hash)
        wanted = {prefix + name: data for name, data in self.repository.state_codec.parts(self.state).items()}
        wanted[prefix + _HEADER] = msgspec.json.encode(header)
        changed = [Part(key, data) for key, data in wanted.items() if self.stored.get(key) != data]
        return (*changed, *(Part(key, None) for key in self.stored if key not in wanted))


class Repository(Generic[S, C, E]):
    """Loads the streams of one kind: a decider with its codecs, on one store.

    Args:
        store: where.
        decider: `decide` and `evolve`.
        codec: of its events.
        state_codec: of its state.
        modules: those that `evolve` and the state are written in; when their source changes, stored state is
            not trusted and the stream is folded again on its next load.
    """

    def __init__(
        self,
        store: EventStore,
        decider: Decider[S, C, E],
        codec: Codec[E],
        state_codec: StateCodec[S],
        modules: tuple[ModuleType, ...] = (),
    ) -> None:
        self.store, self.decider, self.codec, self.state_codec = store, decider, codec, state_codec
        self.evolve_hash = evolve_hash(*modules)

    async def load(self, stream: str, *, refold: bool = False) -> Draft[S, C, E]:
        """The stream's committed state: from its parts where today's `evolve` made them, else folded from events.

        The parts of a retired stream are those that were sealed.
        """
        stored = await self._stored(stream)
        found = None if refold else self.read_parts(stream, stored)
        if found is None:
            found = await self.fold(stream)
        state, version = found
        return Draft(self, stream, version, state, (), stored)

    async def _stored(self, stream: str) -> Mapping[str, bytes]:
        prefix = state_prefix(stream)
        live, _ = await self.store.parts(prefix)
        if live or (sealed := await self.store.sealed(stream)) is None:
            return live
        return {key: data for key, data in sealed.parts.items() if key.startswith(prefix)}

    def read_parts(self, stream: str, stored: Mapping[str, bytes]) -> tuple[S, int] | None:
        """State and version that the parts hold, or None where another `evolve` made them or they are unusable."""
        prefix = state_prefix(stream)
        named = {key.removeprefix(prefix): data for key, data in stored.items()}
        try:
            header = msgspec.json.decode(named.pop(_HEADER), type=Header)
            if header.evolve == self.evolve_hash:
                return self.state_codec.from_parts(named), header.version
        except (KeyError, ValueError):
            pass
        return None

    async def fold(self, stream: str) -> tuple[S, int]:
        """State and version folded from all events of the stream; raises `UnknownEvent`."""
        state, version = self.decider.initial, 0
        while batch := await self.store.read_stream(stream, after=version, limit=_BATCH):
            decoded = (self.codec.decode(one.type, one.schema, one.data) for one in batch)
            state, version = self.decider.fold(decoded, since=state), batch[-1].version
        return state, version


AnyDraft = Draft[Any, Any, Any]
"""Drafts of several kinds of stream commit together."""
