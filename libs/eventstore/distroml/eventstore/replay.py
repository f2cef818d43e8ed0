"""Folding the log again: the state at any position, and whether stored state is what the log says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from distroml.events import Codec, Context, Decider, Position
from distroml.eventstore.codec import StateCodec
from distroml.eventstore.draft import Draft, Header, Repository
from distroml.eventstore.port import Commit, EventStore, WrongExpectedVersion, state_prefix

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")

_BATCH = 1000
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of a stream's stored state that is not what its events fold to.

    Attributes:
        stream: its name.
        field: path in the state such as `workers.3.phase`, or `@version`, `@parts` for what is stored around it.
        stored: JSON of the stored value; empty where it is absent.
        folded: JSON of the value folded from the log; empty where it is absent.
    """

    stream: str
    field: str
    stored: str
    folded: str


async def state_at(
    store: EventStore, decider: Decider[S, C, E], codec: Codec[E], stream: str, position: Position
) -> tuple[S, int]:
    """State and version of a stream after the event at `position`, or the last one before it.

    Raises:
        ValueError: the position belongs to another log.
        UnknownEvent: the stream holds an event that this release does not know.
    """
    if position.log != store.log_id:
        raise ValueError(f"position {position} belongs to log {position.log!r}, this is {store.log_id!r}")
    state, version = decider.initial, 0
    while batch := await store.read_stream(stream, after=version, limit=_BATCH):
        for recorded in batch:
            if recorded.position > position:
                return state, version
            state = decider.evolve(state, codec.decode(recorded.type, recorded.schema, recorded.data))
            version = recorded.version
    return state, version


async def verify(
    store: EventStore,
    decider: Decider[S, C, E],
    codec: Codec[E],
    state_codec: StateCodec[S],
    streams: Sequence[str],
) -> list[Difference]:
    """Every difference between stored state and the fold of the log, field by field; empty means they agree.

    A stream that moves while it is looked at is looked at again. A state that another `evolve` made is compared
    all the same: what differs there is refolded at its next load, and worth knowing before.
    """
    repository = Repository(store, decider, codec, state_codec)
    found: list[Difference] = []
    for stream in streams:
        found += await _verify_one(repository, stream)
    return found


async def mend(repository: Repository[S, C, E], stream: str, *, context: Context) -> bool:
    """Make the stored state of `stream` that of its events; returns whether anything had to be written.

    Raises:
        WrongExpectedVersion: the stream moved on at every attempt.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        write = (await repository.load(stream, refold=True)).mended()
        if not write.parts:
            return False
        try:
            await repository.store.commit(Commit(context=context, appends=(write.append,), parts=write.parts))
        except WrongExpectedVersion:
            if attempt == _ATTEMPTS:
                raise
            continue
        return True
    return False


async def _verify_one(repository: Repository[S, C, E], stream: str) -> list[Difference]:
    while True:
        version = await repository.store.version(stream)
        draft = await repository.load(stream, refold=True)
        if draft.version == version == await repository.store.version(stream):
            return _compare(draft)


def _compare(draft: Draft[S, C, E]) -> list[Difference]:
    prefix = state_prefix(draft.stream)
    named = {key.removeprefix(prefix): data for key, data in draft.stored.items()}
    header = named.pop("@", None)
    if header is None:
        return [Difference(draft.stream, "@parts", "", _json(draft.version))] if draft.version or named else []
    try:
        version = msgspec.json.decode(header, type=Header).version
        state = draft.repository.state_codec.from_parts(named)
    except ValueError as error:
        return [Difference(draft.stream, "@parts", _json(f"unreadable: {error}"), _json(draft.version))]
    found: list[Difference] = []
    if version != draft.version:
        found.append(Difference(draft.stream, "@version", _json(version), _json(draft.version)))
    _diff(draft.stream, "", msgspec.to_builtins(state), msgspec.to_builtins(draft.state), found)
    if not found and draft.repository.state_codec.parts(draft.state) != named:
        found.append(Difference(draft.stream, "@parts", _json(sorted(named)), _json("the same state in other bytes")))
    return found


def _diff(stream: str, path: str, stored: object, folded: object, found: list[Difference]) -> None:
    left, right = _children(stored), _children(folded)
    if left is None or right is None or type(stored) is not type(folded):
        if stored != folded:
            found.append(Difference(stream, path, _json(stored), _json(folded)))
        return
    for name in sorted(left.keys() | right.keys()):
        below = f"{path}.{name}" if path else name
        if name not in left:
            found.append(Difference(stream, below, "", _json(right[name])))
        elif name not in right:
            found.append(Difference(stream, below, _json(left[name]), ""))
        else:
            _diff(stream, below, left[name], right[name], found)


def _children(value: object) -> Mapping[str, object] | None:
    """The named parts of an object or array, or None for a plain value."""
    if isinstance(value, dict):
        return {str(name): child for name, child in cast(dict[Any, object], value).items()}
    if isinstance(value, list | tuple):
        return {str(index): child for index, child in enumerate(cast(Sequence[object], value))}
    return None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
