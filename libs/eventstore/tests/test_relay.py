"""The relay's shell over parts in memory: trouble, replacement and loss, without a server."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from distroml.eventstore import StoreDown, StoreFull
from distroml.eventstore.relay import OutboxTrimmed
from distroml.eventstore.relay.core import SealPolicy
from distroml.eventstore.relay.memory import MemoryLog, MemoryOutbox
from distroml.eventstore.relay.relay import Relay
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore import ObjectDamaged
from distroml.objectstore.memory import open_object_store
from libs.eventstore.tests.log_parts import LOG, entry, events_of, history

COMMITS = history(40)
SOON = SealPolicy(bytes=4000, age_s=0.1)


@asynccontextmanager
async def relaying(outbox, log, objects, *, policy=SOON, reload_bytes=1 << 20, merge_bytes=1 << 20):
    segments = SegmentLog(objects, LOG, merge_bytes=merge_bytes)
    relay = Relay(outbox, log, segments, reload_bytes=reload_bytes, policy=policy)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def filled(commits):
    outbox = MemoryOutbox()
    for one in commits:
        outbox.add(one)
    return outbox


async def segments_of(objects):
    return [one async for one in SegmentLog(objects, LOG).commits(after=0)]


async def test_everything_is_published_sealed_and_then_trimmed():
    outbox, log, objects = filled(COMMITS[:20]), MemoryLog(), open_object_store()
    async with relaying(outbox, log, objects) as relay:
        await until(lambda: outbox.trimmed == COMMITS[19].revision)
        for one in COMMITS[20:]:
            outbox.add(one)
            await asyncio.sleep(0)
        await until(lambda: outbox.trimmed == COMMITS[-1].revision)
        assert (relay.published, relay.sealed, relay.trouble) == (COMMITS[-1].revision, COMMITS[-1].revision, {})
    assert log.events == events_of(COMMITS)
    assert await segments_of(objects) == COMMITS


async def test_an_unsealed_commit_stays_in_the_outbox():
    outbox, log, objects = filled(COMMITS[:5]), MemoryLog(), open_object_store()
    async with relaying(outbox, log, objects, policy=SealPolicy(age_s=3600)) as relay:
        await until(lambda: relay.published == COMMITS[4].revision)
        await asyncio.sleep(0.1)
        assert (outbox.trimmed, relay.sealed) == (0, 0)


async def test_an_unpublished_commit_stays_in_the_outbox():
    class Down(MemoryLog):
        async def publish(self, tail, previous, events):
            raise StoreDown("no NATS")

    outbox, objects = filled(COMMITS[:5]), open_object_store()
    async with relaying(outbox, Down(), objects) as relay:
        await until(lambda: relay.sealed == COMMITS[4].revision and relay.trouble)
        assert relay.trouble == {"publishing": "no NATS"}
        assert outbox.trimmed == 0


async def test_trouble_is_tried_again_and_then_forgotten():
    class Full:
        def __init__(self):
            self.objects, self.full, self.told = open_object_store(), True, []

        def put(self, *args):
            self.told.append(dict(relay.trouble))
            if self.full:
                raise StoreFull("the bucket is full")
            self.objects.put(*args)

        def __getattr__(self, name):
            return getattr(self.objects, name)

    outbox, log, objects = filled(COMMITS[:5]), MemoryLog(), Full()
    async with relaying(outbox, log, objects) as relay:
        await until(lambda: len(objects.told) >= 3)
        # Told without a pause, while the next segment is collected as well.
        assert objects.told == [{}, *[{"sealing": "the bucket is full"}] * (len(objects.told) - 1)]
        assert outbox.trimmed == 0
        objects.full = False
        await until(lambda: outbox.trimmed == COMMITS[4].revision and not relay.trouble)


async def test_a_segment_that_is_read_damaged_stops_nothing_that_does_not_need_it():
    class Damaging:
        def __init__(self):
            self.objects, self.damaged = open_object_store(), ""

        def get(self, key, *, offset=0, length=None):
            if length is None and self.damaged and key.endswith(self.damaged):
                raise ObjectDamaged(f"{key}: what was read has another CRC-32")
            return self.objects.get(key, offset=offset, length=length)

        def __getattr__(self, name):
            return getattr(self.objects, name)

    outbox, log, objects = filled(COMMITS[:4]), MemoryLog(), Damaging()
    async with relaying(outbox, log, objects, policy=SealPolicy(bytes=1, age_s=0.1), merge_bytes=0):
        await until(lambda: outbox.trimmed == COMMITS[3].revision)
    oldest, *others = await SegmentLog(objects, LOG).names()
    assert len(others) == 3, "each is small enough to be sealed again with what follows"
    objects.damaged = str(oldest)
    async with relaying(outbox, log, objects) as relay:
        for one in COMMITS[4:20]:
            outbox.add(one)
        await until(lambda: outbox.trimmed == COMMITS[19].revision)
        assert not relay.trouble
    (found,) = await SegmentLog(objects, LOG).verify()
    assert "another CRC-32" in found
    assert log.events == events_of(COMMITS[:20])


async def test_a_deleted_log_is_filled_again_from_segments_and_outbox():
    outbox, log, objects = filled(COMMITS[:20]), MemoryLog(), open_object_store()
    async with relaying(outbox, log, objects):
        await until(lambda: outbox.trimmed == COMMITS[19].revision)
        log.delete()
        # Nothing is committed meanwhile: the relay notices by looking.
        await until(lambda: log.events == events_of(COMMITS[:20]))
        log.delete()
        for one in COMMITS[20:]:
            outbox.add(one)
        await until(lambda: log.events == events_of(COMMITS))


async def test_of_a_long_log_the_newest_segments_are_filled_in():
    outbox, log, objects = filled(COMMITS), MemoryLog(), open_object_store()
    async with relaying(outbox, log, objects, reload_bytes=1, merge_bytes=0):
        await until(lambda: outbox.trimmed == COMMITS[-1].revision)
        names = await SegmentLog(objects, LOG).names()
        assert len(names) > 3
        log.delete()
        await until(lambda: log.events[-1:] == events_of(COMMITS)[-1:])
        assert log.events == events_of([one for one in COMMITS if one.revision > names[-1].after])
        assert (names[-1].after, 0) < log.begins < (names[-1].after + 1, 0)


async def test_two_relays_at_once_publish_everything_once():
    outbox, log, objects = MemoryOutbox(), MemoryLog(), open_object_store()
    async with relaying(outbox, log, objects), relaying(outbox, log, objects):
        for one in COMMITS:
            outbox.add(one)
            await asyncio.sleep(0.005)
        await until(lambda: outbox.trimmed == COMMITS[-1].revision)
        await until(lambda: len(log.events) == len(events_of(COMMITS)))
    assert log.events == events_of(COMMITS)
    assert await segments_of(objects) == COMMITS


async def test_what_left_the_outbox_unsealed_is_told():
    outbox, objects = filled(COMMITS[:5]), open_object_store()
    await outbox.trim(up_to=COMMITS[2].revision)
    async with relaying(outbox, MemoryLog(), objects) as relay:
        for what in ("publishing", "sealing"):
            await until(lambda what=what: "no segment holds them" in relay.trouble.get(what, ""))


async def test_an_outbox_from_an_older_copy_is_told_and_never_trimmed():
    log, objects = MemoryLog(), open_object_store()
    outbox = filled(COMMITS[:20])
    async with relaying(outbox, log, objects):
        await until(lambda: outbox.trimmed == COMMITS[19].revision)
    # It went on from commit 10, otherwise than before.
    older = filled([*COMMITS[:10], *(entry(one.revision, ("other", 1)) for one in COMMITS[10:25])])
    await older.trim(up_to=COMMITS[4].revision)
    async with relaying(older, log, objects) as relay:
        await until(lambda: "brought back from an older copy" in relay.trouble.get("trimming", ""))
        assert older.trimmed == COMMITS[4].revision


async def test_an_outbox_that_is_brought_back_under_a_relay_is_told():
    class Replaced:
        def __init__(self, outbox):
            self.outbox = outbox

        def __getattr__(self, name):
            return getattr(self.outbox, name)

    outbox, log, objects = Replaced(filled(COMMITS[:20])), MemoryLog(), open_object_store()
    async with relaying(outbox, log, objects) as relay:
        await until(lambda: outbox.trimmed == COMMITS[19].revision)
        outbox.outbox = filled(COMMITS[:10])
        await until(lambda: "brought back from an older copy" in relay.trouble.get("publishing", ""))
        assert outbox.trimmed == 0


async def test_what_was_sealed_and_not_trimmed_before_a_crash_is_trimmed_then():
    log, objects = MemoryLog(), open_object_store()
    await SegmentLog(objects, LOG).seal(0, COMMITS[:20])
    outbox = filled(COMMITS[:25])
    await outbox.trim(up_to=COMMITS[4].revision)
    async with relaying(outbox, log, objects):
        await until(lambda: outbox.trimmed == COMMITS[24].revision)
    assert log.events == events_of(COMMITS[:25])


async def test_the_outbox_in_memory_keeps_the_port():
    outbox = filled(COMMITS[:5])
    with pytest.raises(ValueError, match="rise"):
        outbox.add(entry(1, ("s", 1)))
    assert list(await outbox.pending(after=COMMITS[1].revision, limit=2)) == COMMITS[2:4]
    await outbox.trim(up_to=COMMITS[1].revision)
    await outbox.trim(up_to=0)
    assert list(await outbox.pending(after=COMMITS[1].revision, limit=10)) == COMMITS[2:5]
    with pytest.raises(OutboxTrimmed):
        await outbox.pending(after=COMMITS[1].revision - 1, limit=10)
    await outbox.wait(after=COMMITS[4].revision, timeout_s=0.01)
    waiting = asyncio.create_task(outbox.wait(after=COMMITS[4].revision, timeout_s=10))
    await asyncio.sleep(0)
    outbox.add(COMMITS[5])
    async with asyncio.timeout(1):
        await waiting
