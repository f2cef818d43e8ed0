"""The promises of the event store port as tests, for any back end.

A back end's test inherits `EventStoreConformance` and overrides the fixture `stores`; register this module with
`pytest.register_assert_rewrite` for readable failures. Needs pytest; nothing else imports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from distroml.events import Context, NewEvent, Position, Recorded
from distroml.eventstore.port import (
    MAX_COMMIT_BYTES,
    MAX_COMMIT_OPERATIONS,
    MAX_EVENT_BYTES,
    Append,
    CommandKnown,
    CommandRecord,
    Commit,
    CommitRefused,
    EventStore,
    Fenced,
    Guard,
    Part,
    Subscription,
    WrongExpectedVersion,
)
from distroml.statestore.port import StateStore

Stores = tuple[EventStore, StateStore]
CONTEXT = Context(
    deployment="dep-1",
    project="p",
    actor="ann",
    causation_id="cmd-1",
    correlation_id="req-1",
    time_ms=1_700_000_000_000,
    traceparent="00-1-2-01",
    generation=3,
)


def event(n: int = 0, *, data: bytes | None = None) -> NewEvent:
    """A small event."""
    body = f'{{"n":{n}}}'.encode() if data is None else data
    return NewEvent(id=f"evt-{n}", type="test.Counted", schema=1, public=n % 2 == 1, data=body)


def append(stream: str, expected: int, count: int = 1) -> Append:
    """Some events for a stream."""
    return Append(stream, expected, tuple(event(expected + n) for n in range(count)))


def commit_of(*appends: Append, parts: tuple[Part, ...] = (), guards: tuple[Guard, ...] = ()) -> Commit:
    """A commit without a command."""
    return Commit(context=CONTEXT, appends=appends, parts=parts, guards=guards)


async def take(subscription: Subscription, count: int, within_s: float = 5.0) -> list[Recorded]:
    """The next events of a subscription."""
    found: list[Recorded] = []
    async with asyncio.timeout(within_s):
        async for recorded in subscription:
            found.append(recorded)
            if len(found) == count:
                break
    return found


class EventStoreConformance:
    """Inherit, and override `stores` with an event and a state store of one new deployment."""

    @pytest.fixture
    async def stores(self) -> AsyncIterator[Stores]:
        """An empty pair of stores that share keys and revisions; closed afterwards."""
        raise NotImplementedError
        yield

    async def test_what_is_committed_is_read_back_whole(self, stores: Stores):
        store, _ = stores
        done = await store.commit(commit_of(append("s/a/1", 0, 2), append("s/b/1", 0)))
        assert [(r.stream, r.version, r.position.index) for r in done.events] == [
            ("s/a/1", 1, 0),
            ("s/a/1", 2, 1),
            ("s/b/1", 1, 2),
        ]
        assert tuple(await store.read()) == done.events
        assert tuple(await store.read_stream("s/a/1")) == done.events[:2]
        first = done.events[0]
        assert first.context == CONTEXT
        assert (first.id, first.type, first.schema, first.public, first.data) == (
            "evt-0",
            "test.Counted",
            1,
            False,
            b'{"n":0}',
        )
        assert first.position == Position(store.log_id, done.revision, 0)

    async def test_positions_increase_over_commits(self, stores: Stores):
        store, state = stores
        first = await store.commit(commit_of(append("s/a/1", 0)))
        entry = await state.cas("other", b"x", expected=0)
        second = await store.commit(commit_of(append("s/a/1", 1)))
        assert first.revision < entry.revision < second.revision
        assert first.events[0].position < second.events[0].position

    async def test_an_empty_log(self, stores: Stores):
        store, _ = stores
        assert (await store.head()).revision == 0
        assert (await store.head()).log == store.log_id
        assert await store.version("s/a/1") == 0
        assert list(await store.read()) == []
        assert list(await store.read_stream("s/a/1")) == []
        assert list(await store.streams()) == []
        assert await store.command("cmd-1") is None

    async def test_reading_goes_on_after_a_position(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0, 3)))
        await store.commit(commit_of(append("s/a/1", 3, 2)))
        everything = list(await store.read())
        for i, recorded in enumerate(everything):
            assert list(await store.read(after=recorded.position)) == everything[i + 1 :]
        assert list(await store.read(limit=2)) == everything[:2]
        assert list(await store.read_stream("s/a/1", after=1, limit=2)) == everything[1:3]
        assert await store.head() == everything[-1].position
        assert list(await store.read(after=await store.head())) == []
        whole = everything[0].position
        after_commit = Position(whole.log, whole.revision, 1 << 30)
        assert list(await store.read(after=after_commit)) == everything[3:], "an index past the commit's last event"

    async def test_reading_selects_by_pattern(self, stores: Stores):
        store, _ = stores
        names = ("s/job/1", "s/job/10", "s/node/1", "t/job/1")
        for name in names:
            await store.commit(commit_of(append(name, 0)))

        async def selected(*patterns: str) -> list[str]:
            return [recorded.stream for recorded in await store.read(streams=patterns)]

        assert await selected() == list(names)
        assert await selected("s/job/1") == ["s/job/1"]
        assert await selected("s/job/") == ["s/job/1", "s/job/10"]
        assert await selected("t/job/1", "s/node/") == ["s/node/1", "t/job/1"]
        assert await selected("nothing") == []
        assert list(await store.streams("s/job/")) == ["s/job/1", "s/job/10"]
        assert list(await store.streams(after="s/job/10", limit=1)) == ["s/node/1"]

    async def test_a_position_of_another_log_is_an_error(self, stores: Stores):
        store, _ = stores
        with pytest.raises(ValueError, match="belongs to log"):
            await store.read(after=Position("another", 1))
        with pytest.raises(ValueError, match="belongs to log"):
            store.subscribe("d", start=Position("another", 1))

    async def test_a_wrong_expected_version_writes_nothing(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0)))
        for expected in (0, 2):
            with pytest.raises(WrongExpectedVersion) as caught:
                await store.commit(commit_of(append("s/b/1", 0), append("s/a/1", expected), parts=(Part("k", b"v"),)))
            assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("s/a/1", expected, 1)
        assert await store.version("s/b/1") == 0
        assert (await store.parts(""))[0] == {}
        assert len(await store.read()) == 1

    async def test_an_append_without_events_only_holds_the_version(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0)))
        await store.commit(commit_of(Append("s/a/1", 1, ()), append("s/b/1", 0)))
        with pytest.raises(WrongExpectedVersion):
            await store.commit(commit_of(Append("s/a/1", 0, ()), append("s/b/1", 1)))
        assert await store.version("s/a/1") == 1

    async def test_of_many_writers_of_one_version_one_wins(self, stores: Stores):
        store, _ = stores
        outcomes = await asyncio.gather(
            *(store.commit(commit_of(append("s/a/1", 0))) for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(outcome, WrongExpectedVersion) for outcome in outcomes) == 19
        assert await store.version("s/a/1") == 1

    async def test_parts_are_written_changed_and_deleted_with_the_commit(self, stores: Stores):
        store, state = stores
        first = await store.commit(commit_of(parts=(Part("st/a", b"1"), Part("st/b", b""), Part("zz", b"3"))))
        assert await store.parts("st/") == ({"st/a": b"1", "st/b": b""}, first.revision)
        entry = await state.get("st/a")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"1", first.revision)
        second = await store.commit(commit_of(parts=(Part("st/a", None), Part("st/gone", None))))
        assert await store.parts("st/") == ({"st/b": b""}, second.revision)

    async def test_a_guard_by_value_or_revision_fences(self, stores: Stores):
        store, state = stores
        lease = await state.cas("leader", b"me", expected=0)
        good = (
            Guard("leader", revision=lease.revision),
            Guard("leader", value=b"me"),
            Guard("absent", revision=0),
        )
        for n, guard in enumerate(good):
            await store.commit(commit_of(append("s/a/1", n), guards=(guard,)))
        bad = (
            Guard("leader", revision=lease.revision + 1),
            Guard("leader", revision=0),
            Guard("leader", value=b"you"),
            Guard("absent", value=b""),
            Guard("absent", revision=1),
        )
        for guard in bad:
            with pytest.raises(Fenced) as caught:
                await store.commit(commit_of(append("s/a/1", 3), guards=(good[0], guard)))
            assert caught.value.key == guard.key
        assert await store.version("s/a/1") == 3

    async def test_a_repeated_command_is_known_even_when_its_streams_moved_on(self, stores: Stores):
        store, state = stores
        fence = await state.cas("fence", b"1", expected=0)
        record = CommandRecord("cmd-7", b"hash", b"the answer")
        guard = Guard("fence", revision=fence.revision)
        commit = Commit(context=CONTEXT, appends=(append("s/a/1", 0),), guards=(guard,), command=record)
        await store.commit(commit)
        assert await store.command("cmd-7") == record
        await state.cas("fence", b"2", expected=fence.revision)
        other = Commit(context=CONTEXT, command=CommandRecord("cmd-7", b"other", b"other"))
        for repeat in (commit, other):
            with pytest.raises(CommandKnown) as caught:
                await store.commit(repeat)
            assert caught.value.record == record
        assert await store.version("s/a/1") == 1

    async def test_a_failed_commit_leaves_no_command_record(self, stores: Stores):
        store, _ = stores
        record = CommandRecord("cmd-8", b"h", b"a")
        with pytest.raises(WrongExpectedVersion):
            await store.commit(Commit(context=CONTEXT, appends=(append("s/a/1", 5),), command=record))
        assert await store.command("cmd-8") is None
        await store.commit(Commit(context=CONTEXT, appends=(append("s/a/1", 0),), command=record))

    async def test_bounds_are_inclusive_and_refused_past(self, stores: Stores):
        store, _ = stores
        largest = event(data=b"x" * MAX_EVENT_BYTES)
        await store.commit(commit_of(Append("s/a/1", 0, (largest,))))
        await store.commit(commit_of(append("s/b/1", 0, MAX_COMMIT_OPERATIONS - 1)))
        too_large = event(data=b"x" * (MAX_EVENT_BYTES + 1))
        seventeen = tuple(Append(f"s/c/{n}", 0, (largest,)) for n in range(MAX_COMMIT_BYTES // MAX_EVENT_BYTES))
        refused = {
            "object": commit_of(Append("s/a/1", 1, (too_large,))),
            "operations": commit_of(append("s/a/1", 1, MAX_COMMIT_OPERATIONS)),
            "bytes": commit_of(*seventeen),
            "twice": commit_of(append("s/a/1", 1), append("s/a/1", 2)),
            "'k' twice": commit_of(parts=(Part("k", b"1"), Part("k", None))),
            "only one": commit_of(guards=(Guard("k"),)),
            "printable": commit_of(parts=(Part("a\nb", b""),)),
        }
        for why, commit in refused.items():
            with pytest.raises(CommitRefused, match=why):
                await store.commit(commit)
        assert len(await store.read()) == MAX_COMMIT_OPERATIONS

    async def test_a_subscription_waits_for_new_events_in_log_order(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0, 2)))
        waiting = asyncio.create_task(take(store.subscribe("d", streams=("s/",)), 4))
        await asyncio.sleep(0.05)
        await store.commit(commit_of(append("t/a/1", 0)))
        await store.commit(commit_of(append("s/b/1", 0, 2)))
        assert [(r.stream, r.version) for r in await waiting] == [
            ("s/a/1", 1),
            ("s/a/1", 2),
            ("s/b/1", 1),
            ("s/b/1", 2),
        ]

    async def test_what_is_not_acknowledged_comes_again(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0, 4)))
        subscription = store.subscribe("d")
        first = await take(subscription, 3)
        await subscription.ack(first[1])
        await subscription.close()
        again = await take(store.subscribe("d"), 2)
        assert [recorded.version for recorded in again] == [3, 4]
        assert [recorded.version for recorded in await take(store.subscribe("another"), 4)] == [1, 2, 3, 4]

    async def test_an_acknowledgement_out_of_order_moves_nothing_back(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0, 4)))
        subscription = store.subscribe("d")
        events = await take(subscription, 4)
        await subscription.ack(events[2])
        await subscription.ack(events[0])
        assert [recorded.version for recorded in await take(store.subscribe("d"), 1)] == [4]

    async def test_a_new_cursor_starts_where_asked_and_stays_there(self, stores: Stores):
        store, _ = stores
        await store.commit(commit_of(append("s/a/1", 0, 2)))
        start = await store.head()
        await store.commit(commit_of(append("s/a/1", 2, 1)))
        assert [r.version for r in await take(store.subscribe("d", start=start), 1)] == [3]
        assert [r.version for r in await take(store.subscribe("d", start=await store.head()), 1)] == [3]

    async def test_closing_a_subscription_ends_its_iteration(self, stores: Stores):
        store, _ = stores
        subscription = store.subscribe("d")
        waiting = asyncio.create_task(take(subscription, 1))
        await asyncio.sleep(0.05)
        await subscription.close()
        assert await waiting == []

    async def test_closing_the_store_ends_its_subscriptions(self, stores: Stores):
        store, _ = stores
        waiting = asyncio.create_task(take(store.subscribe("d"), 1))
        await asyncio.sleep(0.05)
        await store.close()
        assert await waiting == []
