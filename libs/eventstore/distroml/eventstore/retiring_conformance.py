"""The promises about finished streams as tests, for any back end: beside `EventStoreConformance`, in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from distroml.eventstore.conformance import CONTEXT, Stores, append, commit_of, event, take
from distroml.eventstore.port import (
    MAX_COMMIT_OPERATIONS,
    MAX_EVENT_BYTES,
    MAX_SEALED_BYTES,
    MAX_SEALED_PARTS,
    Append,
    CommandKnown,
    CommandRecord,
    Commit,
    CommitRefused,
    Fenced,
    Guard,
    Part,
    Sealed,
    WrongExpectedVersion,
    state_prefix,
)
from distroml.statestore.port import StateStore


class RetiringConformance:
    """Inherit, and override `stores`, and `sealable` where the log is sealed after a while only."""

    @pytest.fixture
    async def stores(self) -> AsyncIterator[Stores]:
        """An empty pair of stores that share keys and revisions; closed afterwards."""
        raise NotImplementedError
        yield

    async def sealable(self) -> None:
        """Return once everything that was committed can be retired."""

    async def test_a_retired_stream_leaves_the_live_state_and_answers_as_before(self, stores: Stores):
        store, state = stores
        lease = await state.cas("leader", b"me", expected=0)
        guard = Guard("leader", revision=lease.revision)
        seen = asyncio.create_task(_deletions(state, "state/s/a/1:", lease.revision, 2))
        record = CommandRecord("cmd-1", b"h", b"a")
        parts = {"state/s/a/1:@": b"1", "state/s/a/1:core": b"\x00", "fences/1": b"7"}
        live = {"state/s/a/10:@": b"2", "fences/10": b"8"}
        await store.commit(
            Commit(
                context=CONTEXT,
                appends=(append("s/a/1", 0, 3), append("s/a/10", 0)),
                parts=tuple(Part(key, value) for key, value in (parts | live).items()),
                command=record,
            )
        )
        await self.sealable()
        assert await store.sealed("s/a/1") is None
        for error, version, guards in (
            (Fenced, 3, (guard, Guard("leader", value=b"you"))),
            (WrongExpectedVersion, 2, (guard,)),
            (CommitRefused, 0, ()),
        ):
            with pytest.raises(error):
                await store.retire("s/a/1", version=version, guards=guards)
        with pytest.raises(WrongExpectedVersion, match="s/b/1 is at version 0, expected 1"):
            await store.retire("s/b/1", version=1)
        assert (await store.parts(""))[0] == parts | live | {"leader": b"me"}, "what was refused changed nothing"

        before = await store.head()
        for _ in range(2):
            await store.retire("s/a/1", version=3, keys=("fences/1", "fences/none"), guards=(guard,))
            assert await store.sealed("s/a/1") == Sealed(3, parts)
        assert (await store.parts(""))[0] == live | {"leader": b"me"}
        assert list(await store.streams()) == ["s/a/10"]
        assert [list(await store.retired(*which)) for which in ((), ("s/a/",), ("s/a/10",))] == [["s/a/1"]] * 2 + [[]]
        assert list(await store.retired(after="s/a/1")) == []
        assert await seen == {"state/s/a/1:@", "state/s/a/1:core"}, "watches hear of it"
        with pytest.raises(WrongExpectedVersion):
            await store.retire("s/a/1", version=4)
        assert await store.version("s/a/1") == 3
        assert await store.head() == before
        assert [r.version for r in await store.read_stream("s/a/1", after=1)] == [2, 3]
        assert [r.stream for r in await store.read()] == ["s/a/1"] * 3 + ["s/a/10"]
        assert [r.version for r in await take(store.subscribe("d", streams=("s/a/1",)), 3)] == [1, 2, 3]
        assert await store.command("cmd-1") == record
        with pytest.raises(CommandKnown):
            await store.commit(Commit(context=CONTEXT, appends=(append("s/a/1", 0),), command=record))

    async def test_a_retired_stream_comes_back_with_a_commit_at_its_version(self, stores: Stores):
        store, _ = stores
        prefix = state_prefix("s/a/1")
        parts = {prefix + "@": b"1", prefix + "kept": b"kept", prefix + "gone": b"gone", "fences/1": b"7"}
        await store.commit(
            commit_of(append("s/a/1", 0, 2), parts=tuple(Part(key, value) for key, value in parts.items()))
        )
        await self.sealable()
        await store.retire("s/a/1", version=2, keys=("fences/1",))
        # New streams of other names are begun as ever; this name is taken.
        await store.commit(commit_of(*(append(f"s/b/{n}", 0) for n in range(30))))
        for expected in (0, 1, 3):
            with pytest.raises(WrongExpectedVersion) as caught:
                await store.commit(commit_of(append("s/c/1", 0), append("s/a/1", expected), parts=(Part("k", b"v"),)))
            assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("s/a/1", expected, 2)
        assert await store.sealed("s/a/1") == Sealed(2, parts)
        assert (await store.parts(""))[0] == {}

        own = (Part(prefix + "@", b"2"), Part(prefix + "gone", None), Part("k", b"v"))
        done = await store.commit(commit_of(append("s/b/1", 1), append("s/a/1", 2), parts=own))
        assert [(r.stream, r.version) for r in done.events] == [("s/b/1", 2), ("s/a/1", 3)]
        back = {prefix + "@": b"2", prefix + "kept": b"kept", "fences/1": b"7"}
        assert (await store.parts(""))[0] == back | {"k": b"v"}
        assert await store.sealed("s/a/1") is None
        assert "s/a/1" in await store.streams("s/a/")
        assert await store.version("s/a/1") == 3
        assert [r.version for r in await store.read_stream("s/a/1")] == [1, 2, 3]

        # And again, now at the version it has come to; an append without events brings it back as well.
        await self.sealable()
        await store.retire("s/a/1", version=3, keys=("fences/1",))
        assert await store.sealed("s/a/1") == Sealed(3, back)
        await store.commit(commit_of(Append("s/a/1", 3, ()), parts=(Part(prefix + "@", b"mended"),)))
        assert (await store.parts(prefix))[0] == {prefix + "@": b"mended", prefix + "kept": b"kept"}
        await self.sealable()
        await store.retire("s/a/1", version=3)
        assert await store.sealed("s/a/1") == Sealed(3, {prefix + "@": b"mended", prefix + "kept": b"kept"})
        assert (await store.parts(""))[0] == {"k": b"v", "fences/1": b"7"}

    async def test_what_could_not_come_back_is_not_retired(self, stores: Stores):
        store, _ = stores
        prefix = state_prefix("s/a/1")
        many = tuple(Part(f"{prefix}{n}", b"x") for n in range(MAX_SEALED_PARTS + 1))
        large = Part(prefix + "0", b"x" * (MAX_SEALED_BYTES + 1 - len(prefix) - 1))
        await store.commit(commit_of(append("s/a/1", 0), parts=many))
        await self.sealable()
        with pytest.raises(CommitRefused, match="it stays live"):
            await store.retire("s/a/1", version=1)
        await store.commit(commit_of(parts=(large, *(Part(part.key, None) for part in many[1:]))))
        with pytest.raises(CommitRefused, match="it stays live"):
            await store.retire("s/a/1", version=1)
        await store.commit(commit_of(parts=(Part(prefix + "0", large.value[1:] if large.value else b""),)))
        await store.retire("s/a/1", version=1)
        assert (await store.parts(""))[0] == {}
        others = ("s/b.x/1 *~", "s/b/" + "é" * 120)
        for name in others:
            thirteen = tuple(Part(f"{state_prefix(name)}{n}", b"") for n in range(13))
            await store.commit(commit_of(append(name, 0), parts=thirteen))
        await self.sealable()
        for name in others:
            await store.retire(name, version=1)
        with pytest.raises(CommitRefused, match="2 retired streams with 26 parts"):
            await store.commit(commit_of(*(append(name, 1) for name in others)))
        assert list(await store.streams()) == []
        page = await store.retired(limit=2)
        assert {*page, *await store.retired(after=page[-1], limit=2)} == {"s/a/1", *others}
        assert list(await store.retired("s/b/" + "é" * 119)) == [others[1]]
        # The largest of what can be retired comes back into the largest commit.
        events = tuple(event(n, data=b"y" * (MAX_EVENT_BYTES - 100)) for n in range(15))
        more = tuple(Part(f"k/{n}", b"z") for n in range(MAX_COMMIT_OPERATIONS - 17))
        await store.commit(commit_of(Append("s/a/1", 1, events), parts=more))
        assert len((await store.parts(prefix))[0]) == 1

    async def test_of_retiring_and_committing_one_wins(self, stores: Stores):
        store, _ = stores
        prefix, version = state_prefix("s/a/1"), 0
        for round in range(6):
            part = Part(f"{prefix}{round}", b"%d" % round)
            await store.commit(commit_of(append("s/a/1", version), parts=(part,)))
            version += 1
            await self.sealable()
            retired, committed = await asyncio.gather(
                store.retire("s/a/1", version=version),
                store.commit(commit_of(append("s/a/1", version), parts=(Part(f"{prefix}x", b"%d" % round),))),
                return_exceptions=True,
            )
            # The commit never loses: where the stream was retired first, the commit brings it back.
            assert not isinstance(committed, BaseException), committed
            assert retired is None or isinstance(retired, WrongExpectedVersion), retired
            version += 1
            assert await store.version("s/a/1") == version
            assert await store.sealed("s/a/1") is None
            expected = {f"{prefix}{n}": b"%d" % n for n in range(round + 1)} | {f"{prefix}x": b"%d" % round}
            assert (await store.parts(prefix))[0] == expected
        assert [r.version for r in await store.read_stream("s/a/1")] == list(range(1, version + 1))


async def _deletions(state: StateStore, prefix: str, after: int, count: int) -> set[str]:
    """The keys of the first deletions below a prefix after a revision."""
    found: set[str] = set()
    async with asyncio.timeout(20):
        async for batch in state.watch(prefix, after=after):
            found |= {change.key for change in batch if change.value is None}
            if len(found) >= count:
                break
    return found
