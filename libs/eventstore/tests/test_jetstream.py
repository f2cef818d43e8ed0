"""The JetStream log on a real nats-server: order, guard, loss and return of the server, and what it refuses."""

import asyncio
import json

import pytest

from deploy.stack import running
from deploy.stack.nats import PASSWORD, USER, Nats
from distroml.eventstore import StoreDown
from distroml.eventstore.jetstream import JetStreamLog, JetStreamReader, NatsConnection, NatsSettings, subjects
from distroml.eventstore.relay.core import BEGINNING, end_of
from distroml.eventstore.relay.port import LogMoved
from libs.eventstore.tests.log_parts import events_of, history

COMMITS = history(60)
EVENTS = events_of(COMMITS)


@pytest.fixture(scope="module")
def nats(tmp_path_factory):
    with running(Nats(), tmp_path_factory.mktemp("nats")) as server:
        yield server


def settings_of(server, **changes):
    given = {"servers": (f"nats://127.0.0.1:{server.port}",), "user": USER, "password": PASSWORD, "timeout_s": 5.0}
    return NatsSettings(**(given | changes))


@pytest.fixture
async def connection(nats):
    connection = NatsConnection(settings_of(nats))
    await connection.connect()
    yield connection
    await connection.close()


@pytest.fixture
async def log(connection, request):
    """A log of this test alone."""
    log = JetStreamLog(connection, "dep-1", keep_bytes=1 << 26)
    await delete(log)
    yield log
    await delete(log)


async def delete(log):
    if await log.info() is not None:
        await log.connection.client.jetstream().delete_stream(log.name)


async def everything(log, after=BEGINNING, patterns=(), limit=7):
    reader, found = JetStreamReader(log), []
    while page := await reader.read(after, patterns, limit):
        if page.through == after:
            return found
        found += page.events
        after = page.through
    return found if page is not None else None


def place(recorded):
    return recorded.position.revision, recorded.position.index


async def test_what_is_published_is_read_back_in_order(log):
    tail = await log.tail()
    assert (tail.sequence, tail.place) == (0, None)
    assert await JetStreamReader(log).read(BEGINNING, (), 10) is None
    tail = await log.publish(tail, BEGINNING, EVENTS)
    assert (tail.sequence, tail.place) == (len(EVENTS), place(EVENTS[-1]))
    assert await log.tail() == tail
    assert await everything(log) == EVENTS
    for n in (0, 1, 40, len(EVENTS) - 1):
        assert await everything(log, place(EVENTS[n]), limit=1000) == EVENTS[n + 1 :]
    assert await everything(log, end_of(COMMITS[9].revision)) == events_of(COMMITS[10:])
    assert await everything(log, (COMMITS[9].revision + 1, 5)) == events_of(COMMITS[10:])


async def test_streams_are_selected_by_the_server(log):
    await log.publish(await log.tail(), BEGINNING, EVENTS)
    for name in ("s/a/1", "s/b.x/2 *>"):
        events = [recorded for recorded in EVENTS if recorded.stream == name]
        assert await everything(log, patterns=(name,)) == events
        assert await everything(log, patterns=(name.rpartition("/")[0] + "/",)) == events
        reader = JetStreamReader(log)
        assert await reader.read_stream(name, 0, 1000) == events
        assert await reader.read_stream(name, 0, 5) == events[:5]
        assert await reader.read_stream(name, 5, 5) == events[5:10]
    assert await everything(log, patterns=("s/a/1", "s/b.x/")) == EVENTS
    assert await everything(log, patterns=("s/a/",)) == [one for one in EVENTS if one.stream == "s/a/1"]
    assert await everything(log, patterns=("nothing",)) == []


async def test_a_zombie_is_refused_and_harms_nothing(log):
    start = await log.tail()
    tail = await log.publish(start, BEGINNING, EVENTS[:10])
    with pytest.raises(LogMoved):
        await log.publish(start, BEGINNING, EVENTS[20:25])
    with pytest.raises(LogMoved):
        await log.publish(start, BEGINNING, EVENTS[:5])
    # An event that is in the log is known by its id, wherever it is published again.
    with pytest.raises(LogMoved, match=r"stands at sequence 10 .* already, expected 11"):
        await log.publish(tail, place(EVENTS[9]), EVENTS[9:10])
    assert await log.tail() == tail
    assert await everything(log) == EVENTS[:10]


async def test_a_zombie_of_a_deleted_stream_is_refused_even_at_its_sequence(log):
    old = await log.publish(await log.tail(), BEGINNING, EVENTS[:10])
    await delete(log)
    with pytest.raises(LogMoved):
        await log.publish(old, place(EVENTS[9]), EVENTS[10:12])
    new = await log.tail()
    assert new.incarnation != old.incarnation
    tail = await log.publish(new, end_of(COMMITS[1].revision), EVENTS[20:30])
    assert tail.sequence == old.sequence
    with pytest.raises(LogMoved):
        await log.publish(old, place(EVENTS[9]), EVENTS[10:12])
    assert await log.tail() == tail


async def test_where_an_empty_log_begins_is_decided_once(log):
    empty = await log.tail()
    begin = end_of(COMMITS[9].revision)
    tail = await log.publish(empty, begin, events_of(COMMITS[10:12]))
    # Another relay found it empty, too, stood still, and begins with more than there is by now.
    with pytest.raises(LogMoved):
        await log.publish(empty, BEGINNING, EVENTS[:20])
    assert await log.tail() == tail
    assert await everything(log, begin) == events_of(COMMITS[10:12])


async def test_a_log_that_begins_late_says_so(log):
    begin = COMMITS[9].revision
    await log.publish(await log.tail(), end_of(begin), events_of(COMMITS[10:]))
    assert await everything(log) is None
    assert await everything(log, (begin, 0)) is None
    assert await everything(log, end_of(begin)) == events_of(COMMITS[10:])
    assert await everything(log, place(EVENTS[40]), limit=100) == EVENTS[41:]


async def test_the_oldest_leave_first_and_are_missed(connection):
    small = JetStreamLog(connection, "dep-1", keep_bytes=20_000)
    await delete(small)
    await small.publish(await small.tail(), BEGINNING, EVENTS)
    info = await small.info()
    assert info is not None
    kept = EVENTS[info.state.first_seq - 1 :]
    assert 0 < len(kept) < len(EVENTS)
    assert await everything(small) is None
    assert await everything(small, place(EVENTS[info.state.first_seq - 2])) == kept
    await delete(small)


class Overtaken(JetStreamLog):
    """More is published before each question that is told to be late, until the message asked for has left."""

    late = False

    async def fetch(self, query):
        if self.late and query.batch > 1:
            self.late = False
            while (await self.info()).state.first_seq <= query.sequence + 3:
                tail = await self.tail()
                await self.publish(tail, tail.place, EVENTS[tail.sequence :][:5])
        return await super().fetch(query)


@pytest.mark.parametrize("patterns", [(), ("s/b.x/2 *>",)])
async def test_what_leaves_the_stream_while_it_is_read_is_not_passed_over(connection, patterns):
    log = Overtaken(connection, "dep-1", keep_bytes=8_000)
    await delete(log)
    await log.publish(await log.tail(), BEGINNING, EVENTS[:40])
    reader, first = JetStreamReader(log), (await log.info()).state.first_seq
    assert 1 < first < 30
    log.late = True
    assert await reader.read(place(EVENTS[first - 2]), patterns, 1000) is None
    # Nor where a page goes on from the one before.
    first = (await log.info()).state.first_seq
    page = await reader.read(place(EVENTS[first - 2]), patterns, 2)
    assert page is not None
    log.late = True
    assert await reader.read(page.through, patterns, 1000) is None
    await delete(log)


class Behind(JetStreamLog):
    """Questions are answered by a replica that has only so many messages yet."""

    has = 1 << 20

    async def fetch(self, query):
        found = await super().fetch(query)
        return [one for one in found if query.batch == 1 or one.sequence <= self.has]


@pytest.mark.parametrize("patterns", [(), ("s/b.x/2 *>",)])
async def test_what_a_replica_does_not_have_yet_is_not_passed_over(connection, patterns):
    log = Behind(connection, "dep-1", keep_bytes=1 << 26)
    await delete(log)
    await log.publish(await log.tail(), BEGINNING, EVENTS[:40])
    wanted = [one for one in EVENTS[:40] if not patterns or one.stream in patterns]
    reader, log.has = JetStreamReader(log), 30
    page = await reader.read(BEGINNING, patterns, 1000)
    assert page is not None
    assert list(page.events) == [one for one in wanted if one in EVENTS[:30]]
    for stream in ("s/a/1", "s/b.x/2 *>"):
        with pytest.raises(StoreDown, match="has not reached sequence"):
            await reader.read_stream(stream, 0, 1000)
    with pytest.raises(StoreDown, match="has not reached sequence"):
        await reader.read(page.through, patterns, 1000)
    log.has = 1 << 20
    rest = await reader.read(page.through, patterns, 1000)
    assert rest is not None
    assert [*page.events, *rest.events] == wanted
    await delete(log)


async def test_a_reader_notices_that_the_stream_was_made_anew(log):
    reader = JetStreamReader(log)
    await log.publish(await log.tail(), BEGINNING, EVENTS[:30])
    page = await reader.read(BEGINNING, (), 1000)
    assert page is not None
    await delete(log)
    with pytest.raises(LogMoved):
        await reader.read(page.through, (), 1000)
    await log.publish(await log.tail(), BEGINNING, EVENTS[:20])
    # It ends before the reader's place for now, and holds other events at the sequences that the reader knows.
    behind = await reader.read(page.through, (), 1000)
    assert behind is not None
    assert (behind.events, behind.through) == ((), page.through)
    await log.publish(await log.tail(), place(EVENTS[19]), EVENTS[20:])
    further = await reader.read(page.through, (), 1000)
    assert further is not None
    assert list(further.events) == EVENTS[30:]


async def test_two_creators_agree_on_one_stream(log):
    tails = await asyncio.gather(*(log.tail() for _ in range(4)))
    assert len(set(tails)) == 1


async def test_anothers_stream_is_refused(connection):
    log = JetStreamLog(connection, "dep-2", keep_bytes=1 << 20)
    context = connection.client.jetstream()
    await context.add_stream(name=subjects.stream_name("dep-2"), subjects=["distroml.dep-2.x.>"])
    with pytest.raises(StoreDown, match="belongs to something else"):
        await log.tail()
    await context.delete_stream(log.name)


async def test_what_is_no_event_is_told(log):
    tail = await log.tail()
    root = subjects.root("dep-1", tail.incarnation)
    await log.connection.client.jetstream().publish(f"{root}.s", b"what?", headers={"Distroml-Previous": "0.-1"})
    with pytest.raises(Exception, match="is no event of this log"):
        await log.tail()


async def test_events_carry_their_trace(log):
    await log.publish(await log.tail(), BEGINNING, EVENTS[:1])
    message = await log.connection.client.jetstream().get_msg(log.name, 1)
    assert message.headers is not None
    assert message.headers["traceparent"] == EVENTS[0].context.traceparent


async def test_nothing_acknowledged_is_lost_with_the_server(tmp_path):
    with running(Nats(), tmp_path) as server:
        connection = NatsConnection(settings_of(server, timeout_s=2.0))
        await connection.connect()
        log = JetStreamLog(connection, "dep-1", keep_bytes=1 << 26)
        tail = await log.publish(await log.tail(), BEGINNING, EVENTS[:50])
        reader = JetStreamReader(log)
        page = await reader.read(BEGINNING, (), 30)
        assert page is not None
        server.kill()
        with pytest.raises(StoreDown):
            await log.publish(tail, place(EVENTS[49]), EVENTS[50:])
        with pytest.raises(StoreDown):
            await log.tail()
        await asyncio.to_thread(server.restart)
        async with asyncio.timeout(20):
            while True:
                try:
                    again = await log.tail()
                    break
                except (StoreDown, LogMoved):
                    await asyncio.sleep(0.1)
        assert again.sequence >= 50
        assert again.place is not None
        await log.publish(again, again.place, EVENTS[again.sequence :])
        # The reader from before goes on: there is nothing of it in the server.
        rest = await reader.read(page.through, (), 1000)
        assert rest is not None
        assert [*page.events, *rest.events] == EVENTS
        await connection.close()


async def test_a_second_server_takes_over(nats):
    connection = NatsConnection(settings_of(nats, servers=("nats://127.0.0.1:1", f"nats://127.0.0.1:{nats.port}")))
    await connection.connect()
    assert connection.client.is_connected
    await connection.close()


async def test_no_server_a_wrong_password_and_a_stranger_are_told(nats):
    with pytest.raises(StoreDown, match=r"no NATS server .* at 127.0.0.1:1 .*Connect call failed"):
        await NatsConnection(settings_of(nats, servers=("nats://127.0.0.1:1",), timeout_s=2.0)).connect()
    with pytest.raises(StoreDown, match=r"(?i)authorization") as caught:
        await NatsConnection(settings_of(nats, password="secret-guess", timeout_s=3.0)).connect()
    assert "secret-guess" not in str(caught.value)

    async def greet(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = stranger.sockets[0].getsockname()[1]
    with pytest.raises(StoreDown, match="no NATS server could be used"):
        await NatsConnection(settings_of(nats, servers=(f"nats://127.0.0.1:{port}",), timeout_s=2.0)).connect()
    stranger.close()


@pytest.mark.parametrize("version", ["2.11.9", "2.9.10", "1.4.1", "unknown"])
async def test_an_old_server_is_refused_by_name(nats, version):
    async def old(reader, writer):
        greeting = {"server_id": "x", "version": version, "max_payload": 1 << 20, "headers": True, "proto": 1}
        writer.write(b"INFO " + json.dumps(greeting).encode() + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(old, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StoreDown, match=rf"v{version} at 127.0.0.1:{port} is too old or unknown: 2.12 or newer"):
        await NatsConnection(settings_of(nats, servers=(f"nats://127.0.0.1:{port}",))).connect()
    server.close()
    await server.wait_closed()


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no NATS server"):
        NatsSettings(servers=())
    with pytest.raises(ValueError, match="together"):
        NatsSettings(servers=("nats://x",), cert_file=tmp_path)
    assert "secret" not in repr(NatsSettings(servers=("nats://x",), password="secret"))
