"""Random operations on every back end against one plain model; all three must agree step by step."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.eventstore import (
    Append,
    CommandKnown,
    CommandRecord,
    Commit,
    CommitRefused,
    Fenced,
    Guard,
    Part,
    WrongExpectedVersion,
    memory,
    sqlite,
)
from distroml.eventstore.conformance import CONTEXT, event
from distroml.statestore import CasConflict
from distroml.statestore.memory import MemoryDatabase
from distroml.statestore.memory import open_state_store as open_memory_state
from distroml.statestore.sqlite import open_state_store

STREAMS = st.sampled_from(["s/a/1", "s/a/10", "s/b/1"])
KEYS = st.sampled_from(["k/1", "k/10", "k/é", "z"])
VALUES = st.binary(max_size=3)
OFF = st.sampled_from([0, 0, 0, 0, 1, -1])

appends = st.lists(st.tuples(STREAMS, OFF, st.integers(0, 3)), max_size=2, unique_by=lambda a: a[0])
parts = st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=2, unique_by=lambda p: p[0])
guards = st.lists(st.tuples(KEYS, OFF, st.none() | VALUES), max_size=1)
commands = st.none() | st.sampled_from(["c1", "c2", "c3"])
commits = st.tuples(st.just("commit"), appends, parts, guards, commands)
cas = st.tuples(st.just("cas"), KEYS, OFF, VALUES)
deletes = st.tuples(st.just("delete"), KEYS, OFF)
retires = st.tuples(st.just("retire"), STREAMS, OFF, st.lists(KEYS, max_size=2, unique=True))
OPERATIONS = st.lists(commits | commits | cas | deletes | retires, max_size=12)


class Model:
    """The ports' rules in their plainest form."""

    def __init__(self):
        self.revision, self.log, self.keys, self.commands, self.changes = 0, [], {}, {}, []
        self.sealed = {}

    def version(self, stream):
        return sum(s == stream for s, _ in self.log)

    def at(self, key):
        return self.keys.get(key, (0, None))[0]

    def set(self, key, value):
        if value is not None or key in self.keys:
            self.changes.append((self.revision, key, value))
        self.keys.pop(key, None)
        if value is not None:
            self.keys[key] = (self.revision, value)

    def commit(self, commit):
        if commit.command and commit.command.id in self.commands:
            return CommandKnown
        for guard in commit.guards:
            revision, value = self.keys.get(guard.key, (0, None))
            if (guard.revision != revision) if guard.value is None else (guard.value != value):
                return Fenced
        if any(self.version(append.stream) != append.expected for append in commit.appends):
            return WrongExpectedVersion
        self.revision += 1
        for append in commit.appends:
            self.log += [(append.stream, append.expected + n) for n in range(1, len(append.events) + 1)]
        own = {part.key for part in commit.parts}
        for append in commit.appends:
            for key, value in self.sealed.pop(append.stream, {}).items():
                if key not in own:
                    self.set(key, value)
        for part in commit.parts:
            self.set(part.key, part.value)
        if commit.command:
            self.commands[commit.command.id] = commit.command
        return self.revision

    def retire(self, stream, version, keys):
        if version < 1:
            return CommitRefused
        if self.version(stream) != version:
            return WrongExpectedVersion
        if stream not in self.sealed:
            self.revision += 1
            self.sealed[stream] = {key: self.keys[key][1] for key in keys if key in self.keys}
            for key in self.sealed[stream]:
                self.set(key, None)
        return None

    def cas(self, key, value, expected):
        if self.at(key) != expected:
            return CasConflict
        self.revision += 1
        self.set(key, value)
        return self.revision

    def delete(self, key, expected):
        if self.at(key) != expected:
            return CasConflict
        if expected:
            self.revision += 1
            self.set(key, None)
        return None


async def attempt(call):
    try:
        return getattr(await call, "revision", None)
    except (CasConflict, CommandKnown, CommitRefused, Fenced, WrongExpectedVersion) as error:
        return type(error)


def commit_for(model, operation):
    _, appends, parts, guards, command = operation
    return Commit(
        context=CONTEXT,
        appends=tuple(
            Append(stream, max(0, version), tuple(event(version + n) for n in range(count)))
            for stream, off, count in appends
            if (version := model.version(stream) + off) is not None
        ),
        parts=tuple(Part(key, value) for key, value in parts),
        guards=tuple(
            Guard(key, revision=model.at(key) + off) if value is None else Guard(key, value=value)
            for key, off, value in guards
        ),
        command=CommandRecord(command, b"h", b"a") if command else None,
    )


async def agree(operations, folder):
    model, database = Model(), MemoryDatabase("dep-1")
    path = Path(folder) / "store.db"
    backends = [
        (memory.open_event_store(database), open_memory_state(database)),
        (sqlite.open_event_store(path, deployment="dep-1"), open_state_store(path)),
    ]
    for operation in operations:
        if operation[0] == "commit":
            commit = commit_for(model, operation)
            wanted = model.commit(commit)
            got = [await attempt(events.commit(commit)) for events, _ in backends]
        elif operation[0] == "retire":
            _, stream, off, keys = operation
            version = model.version(stream) + off
            wanted = model.retire(stream, version, keys)
            got = [await attempt(events.retire(stream, version=version, keys=keys)) for events, _ in backends]
        else:
            kind, key, off, *rest = operation
            expected = max(0, model.at(key) + off)
            wanted = getattr(model, kind)(key, *rest, expected)
            got = [await attempt(getattr(state, kind)(key, *rest, expected=expected)) for _, state in backends]
        assert got == [wanted, wanted]
    for events, state in backends:
        log = await events.read()
        assert [(recorded.stream, recorded.version) for recorded in log] == model.log
        assert [recorded.position for recorded in log] == sorted(recorded.position for recorded in log)
        assert {name: dict((await events.sealed(name)).parts) for name in await events.retired()} == model.sealed
        assert sorted(await events.streams()) == sorted({stream for stream, _ in model.log} - model.sealed.keys())
        listing = await state.list("")
        assert [(e.key, e.revision, e.value) for e in listing.entries] == [
            (key, *model.keys[key]) for key in sorted(model.keys)
        ]
        assert listing.revision == model.revision
        seen = []
        if model.changes:
            async for batch in state.watch("", after=0):
                seen += [(change.revision, change.key, change.value) for change in batch]
                if len(seen) >= len(model.changes):
                    break
        assert seen == model.changes
    assert await sqlite.verify_log(backends[1][0]) == []
    for stores in backends:
        for store in stores:
            await store.close()


@settings(max_examples=30, deadline=None)
@given(OPERATIONS)
def test_every_back_end_behaves_like_the_model(operations):
    async def run():
        with tempfile.TemporaryDirectory() as folder:
            async with asyncio.timeout(10):
                await agree(operations, folder)

    asyncio.run(run())
