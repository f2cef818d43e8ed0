"""The event store's promises for reading, over outbox, log and segments: in memory, and on a real nats-server."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.stack import running
from deploy.stack.nats import PASSWORD, USER, Nats
from distroml.eventstore import StoreDown, memory
from distroml.eventstore.conformance import EventStoreConformance
from distroml.eventstore.jetstream import JetStreamLog, JetStreamReader, NatsConnection, NatsSettings
from distroml.eventstore.relay import OutboxEntry
from distroml.eventstore.relay.core import BEGINNING, SealPolicy, end_of
from distroml.eventstore.relay.cursors import Cursors
from distroml.eventstore.relay.memory import MemoryLog, MemoryOutbox
from distroml.eventstore.relay.reader import LogReader
from distroml.eventstore.relay.relay import Relay
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore import ObjectStoreDown
from distroml.objectstore.memory import open_object_store
from distroml.statestore.memory import MemoryDatabase, open_state_store
from libs.eventstore.tests.log_parts import LOG, events_of, history

COMMITS = history(40)


class OutboxStore:
    """An event store whose commits are in memory, and whose reading is that of the log.

    A commit returns when the relay has done with it what there is to do, so that it is read from where it lies then.
    """

    def __init__(self, commits, outbox, reader, relayed, stop):
        self._commits, self._outbox, self._reader, self._stop = commits, outbox, reader, stop
        self._relayed = relayed
        self.read, self.read_stream, self.subscribe = reader.read, reader.read_stream, reader.subscribe

    def __getattr__(self, name):
        return getattr(self._commits, name)

    async def commit(self, commit):
        done = await self._commits.commit(commit)
        if done.events:
            self._outbox.add(OutboxEntry(done.revision, done.events))
            async with asyncio.timeout(10):
                while self._relayed() < done.revision:
                    await asyncio.sleep(0.001)
            self._reader.wake.notify()
        return done

    async def close(self):
        self._reader.close()
        await self._stop()


@asynccontextmanager
async def relayed(log, pages, database, policy):
    """A store, its log filled and sealed by a relay behind it."""
    outbox, objects = MemoryOutbox(), open_object_store()
    segments = SegmentLog(objects, LOG)
    relay = Relay(outbox, log, segments, reload_bytes=1 << 20, policy=policy)
    task = asyncio.create_task(relay.run())
    state = open_state_store(database)
    reader = LogReader(LOG, outbox, pages, SegmentLog(objects, LOG), Cursors(state))

    async def stop():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def reached():
        return relay.published if policy.age_s else outbox.trimmed

    store = OutboxStore(memory.open_event_store(database), outbox, reader, reached, stop)
    yield store, state
    await store.close()
    await state.close()


# Sealed at once, so that the log is read from all three places; and never, so that it is the outbox and the log.
POLICIES = {"sealed": SealPolicy(bytes=500, age_s=0.0), "unsealed": SealPolicy(age_s=3600)}


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


class TestMemory(EventStoreConformance):
    @pytest.fixture
    async def stores(self, policy):
        log = MemoryLog()
        async with relayed(log, log, MemoryDatabase(LOG), policy) as stores:
            yield stores


@pytest.fixture(scope="module")
def nats(tmp_path_factory):
    with running(Nats(), tmp_path_factory.mktemp("nats")) as server:
        yield server


class TestJetStream(EventStoreConformance):
    @pytest.fixture
    async def stores(self, nats, policy):
        connection = NatsConnection(
            NatsSettings(servers=(f"nats://127.0.0.1:{nats.port}",), user=USER, password=PASSWORD)
        )
        await connection.connect()
        log = JetStreamLog(connection, LOG, keep_bytes=1 << 26)
        async with relayed(log, JetStreamReader(log), MemoryDatabase(LOG), policy) as stores:
            yield stores
        await log.tail()
        await connection.client.jetstream().delete_stream(log.name)
        await connection.close()


class Gone(MemoryLog):
    """A log that nobody answers for."""

    async def reach(self):
        raise StoreDown("no NATS")

    read = read_stream = lambda self, *_args: self.reach()


class TestWithoutLog(EventStoreConformance):
    """With the log down, everything is read from segments and outbox."""

    @pytest.fixture
    async def stores(self, policy):
        async with relayed(MemoryLog(), Gone(), MemoryDatabase(LOG), policy) as stores:
            yield stores


def reader_of(log, begins, page_commits=512):
    """A reader of `COMMITS`, all of them in its outbox, of these events in its log, and of what will be sealed."""
    outbox, objects = MemoryOutbox(), open_object_store()
    for one in COMMITS:
        outbox.add(one)
    parts = MemoryLog()
    parts.events, parts.begins = list(log), begins
    parts.whole = bool(log) and log[-1] in [one.events[-1] for one in COMMITS]
    cursors = Cursors(open_state_store())
    reader = LogReader(LOG, outbox, parts, SegmentLog(objects, LOG), cursors, page_commits=page_commits)
    return reader, outbox, objects


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_wherever_a_commit_lies_it_is_read_once_and_in_order(data):
    """Any state that the relay's rules allow, the log lost or filled again to any event, any place and limit."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(COMMITS)), max_size=4)))
    trimmed = data.draw(st.integers(0, cuts[-1] if cuts else 0))
    begin = data.draw(st.sampled_from([0, *cuts]))
    whole = events_of(COMMITS[begin:])
    log = whole[: data.draw(st.integers(0, len(whole)))]
    begins = end_of(COMMITS[begin - 1].revision) if begin else BEGINNING

    async def check():
        page_commits = data.draw(st.sampled_from([1, 4, 512]))
        reader, outbox, objects = reader_of(log, begins if log else None, page_commits)
        segments, start = SegmentLog(objects, LOG), 0
        for cut in cuts:
            await segments.seal(COMMITS[start - 1].revision if start else 0, COMMITS[start:cut])
            start = cut
        if trimmed:
            await outbox.trim(up_to=COMMITS[trimmed - 1].revision)
        everything = events_of(COMMITS)
        limit = data.draw(st.sampled_from([1, 3, 10, 1000]))
        patterns = data.draw(st.sampled_from([(), ("s/a/1",), ("s/b.x/",), ("s/a/", "s/b.x/2 *>"), ("none",)]))
        chosen = [one for one in everything if not patterns or one.stream[:4] in [text[:4] for text in patterns]]
        place = data.draw(
            st.sampled_from([BEGINNING, *((one.position.revision, one.position.index) for one in everything)])
        )
        after, found = place, []
        while True:
            events, through = await reader.scan(after, patterns, limit)
            assert len(events) <= limit
            assert through >= after
            found += events
            after = through
            if not events:
                break
        assert found == [one for one in chosen if (one.position.revision, one.position.index) > place]
        assert after >= end_of(COMMITS[-1].revision)
        for stream in ("s/a/1", "s/b.x/2 *>", "none"):
            events = [one for one in everything if one.stream == stream]
            version = data.draw(st.integers(0, len(events)))
            assert list(await reader.read_stream(stream, after=version, limit=limit)) == events[version:][:limit]

    asyncio.run(check())


class Counted(MemoryOutbox):
    """An outbox that counts what it is made to list."""

    listed = 0

    async def pending(self, *, after, limit):
        found = await super().pending(after=after, limit=limit)
        self.listed += len(found)
        return found


class Away:
    """A store of objects that nobody answers for."""

    def list(self, *_args, **_keywords):
        raise ObjectStoreDown("no S3")


LONG = history(600)


@asynccontextmanager
async def long_outbox(*, sealed=0, logged=0):
    """A reader by pages of ten over an outbox of `LONG`, which segments and a log have up to there; 0: are away."""
    outbox, objects, log = Counted(), open_object_store(), MemoryLog() if logged else Gone()
    for one in LONG:
        outbox.add(one)
    if sealed:
        await SegmentLog(objects, LOG).seal(0, LONG[:sealed])
    if logged:
        await log.publish(await log.tail(), BEGINNING, events_of(LONG[:logged]))
    segments, state = SegmentLog(objects if sealed else Away(), LOG), open_state_store()
    yield LogReader(LOG, outbox, log, segments, Cursors(state), page_commits=10), outbox, log
    await state.close()


def of_stream(stream):
    return [one for one in events_of(LONG) if one.stream == stream]


@pytest.mark.parametrize("where", [{"sealed": 590}, {"logged": 590}, {"sealed": 300, "logged": 590}])
@pytest.mark.parametrize("after", [0, 400, 790])
async def test_of_a_long_outbox_only_what_nobody_else_has_is_listed(where, after):
    """JetStream or S3 is away for long: nothing leaves the outbox, and each read costs no more for it."""
    async with long_outbox(**where) as (reader, outbox, _):
        for _ in range(5):
            outbox.listed = 0
            assert await reader.read_stream("s/a/1", after=after, limit=10_000) == of_stream("s/a/1")[after:]
            assert outbox.listed <= 20
        assert outbox.listed <= 10


async def test_a_limit_ends_the_listing_of_a_long_outbox():
    async with long_outbox() as (reader, outbox, _):
        assert await reader.read_stream("s/a/1", limit=3) == of_stream("s/a/1")[:3]
        assert outbox.listed == 10


async def test_what_was_passed_over_is_listed_when_the_log_that_had_it_is_lost():
    for where in ({"logged": 590}, {"sealed": 300, "logged": 590}):
        async with long_outbox(**where) as (reader, _, log):
            everything = of_stream("s/a/1")
            assert await reader.read_stream("s/a/1", after=100, limit=10_000) == everything[100:]
            log.delete()
            assert await reader.read_stream("s/a/1", after=100, limit=10_000) == everything[100:]


async def test_a_cursor_that_is_no_place_is_told():
    state = open_state_store()
    await state.cas("cursors/d", b"what?", expected=0)
    with pytest.raises(Exception, match="no place in a log; delete the key"):
        await Cursors(state).open("d", BEGINNING)
    await state.close()
