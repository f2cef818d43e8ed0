"""Record a golden log from the data folder of a run, such as `distroml demo --data FOLDER --steps 120`:

    python -m tests.replay.record demo-2026-11 FOLDER

`tests.replay.play` plays other runs worth recording.

It is written under `tests/replay/logs`, and never over another one. Record a new one when a release writes an event in
a new schema, or streams that no recorded log has; keep every old one, for their events are in people's logs.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distroml.eventstore.etcd.archive import Archive
from distroml.eventstore.sqlite import open_event_store
from distroml.objectstore.memory import MemoryObjectStore
from tests.replay.folds import digest, fold, kind_of
from tests.replay.log import LOGS, Golden, Line, write


async def read_log(data: Path) -> list[Line]:
    """Every event of a data folder's log, in its order."""
    store = open_event_store(data / "control.sqlite", create=False)
    try:
        lines: list[Line] = []
        after = None
        while batch := await store.read(after=after):
            lines += map(Line.of, batch)
            after = batch[-1].position
        return lines
    finally:
        await store.close()


async def read_retired(data: Path) -> dict[str, bytes]:
    """What the retired streams of a data folder left behind, as the objects that they leave on the stack, by key."""
    store, objects = open_event_store(data / "control.sqlite", create=False), MemoryObjectStore()
    try:
        archive = Archive(objects, store.log_id)
        for name in await store.retired():
            sealed = await store.sealed(name)
            assert sealed is not None
            (last,) = await store.read_stream(name, after=sealed.version - 1)
            await archive.put(name, sealed, revision=last.position.revision)
    finally:
        await store.close()
    return {info.key: objects.get(info.key) for info in objects.list("retired/")}


def states_of(lines: list[Line]) -> dict[str, Any]:
    """Version, state and its hash of each stream."""
    streams: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        streams[line.stream].append(line)
    states = {name: fold(name, own) for name, own in streams.items()}
    return {
        name: {"version": len(streams[name]), "sha256": digest(state), "state": state} for name, state in states.items()
    }


def record(name: str, data: Path) -> Golden:
    """Record the log of a data folder under a new name."""
    return _write(name, asyncio.run(read_log(data)), asyncio.run(read_retired(data)))


def record_events(name: str, streams: Mapping[str, Sequence[Any]]) -> Golden:
    """Record events by hand: what a run hardly ever writes, or an event that is new; by stream, as its owner's classes.

    In an interpreter: `record_events("resized-2027-01", {"scheduler/job/job-1": [Submitted(...), Resized(...)]})`.
    """
    lines: list[Line] = []
    for stream, events in streams.items():
        for event in events:
            stored = kind_of(stream).codec.encode(event, id="evt")
            lines.append(Line(stream, stored.type, stored.schema, stored.public, stored.data))
    return _write(name, lines)


def _write(name: str, lines: list[Line], retired: Mapping[str, bytes] = MappingProxyType({})) -> Golden:
    about = {"release": version("distroml"), "events": str(len(lines))}
    return write(LOGS / name, lines, states_of(lines), about, retired)


if __name__ == "__main__":
    _, chosen, folder = sys.argv
    print(f"recorded {record(chosen, Path(folder)).folder}")
