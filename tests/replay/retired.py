"""What retired streams of a golden log left behind, and a store of today in which they are retired."""

from __future__ import annotations

from collections.abc import Mapping

from distroml.events import Context, NewEvent
from distroml.eventstore import Append, Commit, EventStore, Part
from distroml.eventstore.etcd.archive import Archive
from distroml.eventstore.memory import open_event_store
from distroml.eventstore.port import Sealed, state_prefix
from distroml.objectstore.memory import MemoryObjectStore
from tests.replay.log import Golden, Line

_CONTEXT = Context(deployment="d", project="p", actor="a", causation_id="c", correlation_id="r", time_ms=1)


async def left_behind(objects: Mapping[str, bytes]) -> dict[str, Sealed]:
    """By stream, what its object says; raises `StoreDamaged` for one that was changed since it was recorded."""
    kept = MemoryObjectStore()
    for key, data in objects.items():
        kept.put(key, data)
    (log_id,) = {key.split("/")[1] for key in objects}
    archive = Archive(kept, log_id)
    found = {name: await archive.load(name) for name in await archive.names("", after="", limit=len(objects))}
    return {name: sealed for name, sealed in found.items() if sealed is not None}


async def brought_in(golden: Golden) -> EventStore:
    """A store with the log's events, in which the streams are retired that were, with what they left behind."""
    store = open_event_store()
    for stream, lines in golden.streams().items():
        for expected, line in enumerate(lines):
            event = Append(stream, expected, (_event(line, f"{stream}-{expected}"),))
            await store.commit(Commit(context=_CONTEXT, appends=(event,)))
    for stream, sealed in (await left_behind(golden.retired())).items():
        await back(store, stream, sealed.version, sealed.parts)
        keys = [key for key in sealed.parts if not key.startswith(state_prefix(stream))]
        await store.retire(stream, version=sealed.version, keys=keys)
    return store


async def back(store: EventStore, stream: str, version: int, parts: Mapping[str, bytes | None] | None = None) -> None:
    """Commit nothing new at a version of a stream, which brings a retired one back; with it some parts."""
    changed = tuple(Part(key, value) for key, value in (parts or {}).items())
    await store.commit(Commit(context=_CONTEXT, appends=(Append(stream, version, ()),), parts=changed))


def _event(line: Line, id: str) -> NewEvent:
    return NewEvent(id=id, type=line.type, schema=line.schema, public=line.public, data=line.data)
