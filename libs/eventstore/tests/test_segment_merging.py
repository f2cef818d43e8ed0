"""Small segments are sealed anew with what follows them, and nothing of the log is lost by it."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.eventstore.segments import SegmentLog, merging
from distroml.eventstore.segments.chain import chain
from distroml.eventstore.segments.format import BEGINNING, Name, decode_header, encode
from distroml.objectstore import ObjectStoreRefused
from distroml.objectstore.memory import open_object_store
from libs.eventstore.tests.log_parts import LOG, events_of, history
from libs.eventstore.tests.segment_parts import COMMITS, everything, key_of, sealed


def stored(objects):
    return [info.key for info in objects.list(f"log/{LOG}/")]


async def test_small_segments_are_merged_into_few_and_every_commit_stays():
    """A seal for each few commits, for long: what is stored stays few, and is read back whole all along."""
    objects, commits = open_object_store(), history(600)
    segments, reader = SegmentLog(objects, LOG, merge_bytes=20_000), SegmentLog(objects, LOG)
    end = 0
    for start in range(0, 600, 3):
        end = await segments.seal(end, commits[start : start + 3])
        if start % 60 == 0:
            assert await everything(reader) == commits[: start + 3]
    sizes = [decode_header(name, objects.get(key_of(name)), LOG).body_bytes for name in await segments.names()]
    assert max(sizes) <= 20_000
    assert len(sizes) <= 2 * sum(sizes) / 20_000 + 8
    # What was merged by the last seal leaves with the next one.
    assert len(stored(objects)) <= len(sizes) + 8
    for one in (segments, reader, SegmentLog(objects, LOG)):
        assert await everything(one) == commits
        for stream in ("s/a/1", "s/b.x/2 *>"):
            events = [recorded for recorded in events_of(commits) if recorded.stream == stream]
            assert await one.read_stream(stream, after=0, limit=1000) == events
            assert await one.read_stream(stream, after=200, limit=7) == events[200:207]
        assert await one.verify() == []


async def test_who_knew_segments_that_were_merged_and_removed_since_reads_on():
    for cut in (0, 4, 9):
        objects = open_object_store()
        reader = await sealed(objects, 5, 10)
        assert await reader.sealed() == COMMITS[9].revision
        relay = SegmentLog(objects, LOG)
        await relay.seal(COMMITS[9].revision, COMMITS[10:25])
        await relay.seal(COMMITS[24].revision, COMMITS[25:26])
        assert len(stored(objects)) == 2
        after = COMMITS[cut - 1].revision if cut else 0
        assert await everything(reader, after) == COMMITS[cut:26]
        reader = SegmentLog(objects, LOG)
        assert await reader.newest(0) == COMMITS[24].revision


async def test_what_follows_a_segment_that_was_merged_and_removed_is_joined_to_what_stands_for_it():
    """A replaced relay that stood still seals behind a segment that is gone by then."""
    for ours in (18, 25):
        objects = open_object_store()
        zombie = await sealed(objects, 5, 10)
        (name, data) = encode(LOG, COMMITS[9].revision, (await zombie.names())[-1].link, COMMITS[10:20])
        relay = SegmentLog(objects, LOG)
        await relay.seal(COMMITS[9].revision, COMMITS[10:ours])
        known = SegmentLog(objects, LOG)
        assert await everything(known) == COMMITS[:ours]
        await relay._removed()
        assert len(stored(objects)) == 1
        objects.put(key_of(name), data)
        for reader in (relay, known, SegmentLog(objects, LOG)):
            assert await everything(reader) == COMMITS[: max(ours, 20)]
            events = [one for one in events_of(COMMITS[: max(ours, 20)]) if one.stream == "s/a/1"]
            assert await reader.read_stream("s/a/1", after=0, limit=100) == events
            assert await reader.verify() == []
        await relay.seal(await relay.sealed(), COMMITS[max(ours, 20) :])
        assert await everything(SegmentLog(objects, LOG)) == COMMITS


async def left_small(count=20):
    """What an older relay left: single commits, then a large segment, then one more."""
    objects = open_object_store()
    await sealed(objects, *range(1, count + 1), 29, 30)
    sizes = [info.size for info in objects.list(f"log/{LOG}/")]
    # A bound that the small ones fit into, and not with the large one.
    return objects, 8 * sum(sizes[:count])


async def test_segments_that_stayed_small_behind_a_large_one_are_merged_with_one_another():
    objects, bound = await left_small()
    before = SegmentLog(objects, LOG)
    old = await before.names()
    relay = SegmentLog(objects, LOG, merge_bytes=bound)
    more = history(33)
    await relay.seal(COMMITS[-1].revision, more[30:31])
    # What stands for them is there, and they are until the next seal.
    assert len(stored(objects)) > 20
    for reader in (before, relay, SegmentLog(objects, LOG)):
        assert await everything(reader) == more[:31]
    await relay.seal(more[30].revision, more[31:32])
    assert len(stored(objects)) < 6
    # A relay that was replaced and stood still goes on behind one that has left.
    name, data = encode(LOG, old[19].last, old[19].link, COMMITS[20:24])
    objects.put(key_of(name), data)
    for reader in (before, relay, SegmentLog(objects, LOG)):
        assert await everything(reader) == more[:32]
        assert await everything(reader, COMMITS[19].revision) == more[20:32]
        assert await everything(reader, COMMITS[7].revision) == more[8:32]
        events = [recorded for recorded in events_of(more[:32]) if recorded.stream == "s/a/1"]
        assert await reader.read_stream("s/a/1", after=0, limit=1000) == events
        assert await reader.verify() == []


async def test_a_relay_killed_while_it_merges_what_stayed_small_is_gone_on_with():
    more = history(34)
    for gone in range(21):
        objects, bound = await left_small()
        relay = SegmentLog(objects, LOG, merge_bytes=bound)
        old = await relay.names()
        await relay.seal(COMMITS[-1].revision, more[30:31])
        for name in old[:gone]:
            objects.delete(key_of(name))
        assert await everything(SegmentLog(objects, LOG)) == more[:31]
        successor = SegmentLog(objects, LOG, merge_bytes=bound)
        for at in (31, 32, 33):
            await successor.seal(more[at - 1].revision, more[at : at + 1])
        assert await everything(SegmentLog(objects, LOG)) == more
        assert len(stored(objects)) < 6


@pytest.mark.parametrize(
    ("sizes", "most", "runs"),
    [
        ([], 80, []),
        ([1] * 9, 80, [slice(0, 8)]),
        ([1] * 8, 80, []),
        ([1] * 10 + [11] + [1] * 9, 80, [slice(0, 10), slice(11, 19)]),
        ([1] * 28, 80, [slice(0, 10), slice(10, 20)]),
        ([0] * 100, 80, [slice(0, 64), slice(64, 99)]),
    ],
)
def test_neighbours_that_stayed_small_are_found(sizes, most, runs):
    assert merging.scattered(sizes, most) == runs


async def test_a_listing_that_lacks_what_came_meanwhile_is_made_again():
    """Segments are listed one page after the other, and a folder's entries in no order."""

    class Torn:
        def __init__(self, objects, key):
            self._objects, self._key = objects, key

        def __getattr__(self, name):
            return getattr(self._objects, name)

        def list(self, *args, **keywords):
            key, self._key = self._key, None
            return [info for info in self._objects.list(*args, **keywords) if info.key != key]

    objects = open_object_store()
    await sealed(objects, 10, 20, 30)
    for key in stored(objects)[:2]:
        reader = SegmentLog(Torn(objects, key), LOG)
        assert await everything(reader) == COMMITS
        assert await reader.verify() == []


async def test_a_damaged_segment_is_not_merged_and_keeps_nothing_from_being_sealed():
    objects = open_object_store()
    (name,) = await (await sealed(objects, 5)).names()
    objects.put(key_of(name), objects.get(key_of(name))[:-1])
    await SegmentLog(objects, LOG).seal(COMMITS[4].revision, COMMITS[5:])
    assert len(stored(objects)) == 2
    assert await everything(SegmentLog(objects, LOG), COMMITS[4].revision) == COMMITS[5:]


async def test_where_nothing_can_be_removed_sealing_goes_on_and_merges_no_more():
    class Kept:
        """A store that lets nobody delete."""

        def __init__(self, objects):
            self._objects = objects

        def __getattr__(self, name):
            return getattr(self._objects, name)

        def delete(self, key):
            raise ObjectStoreRefused("no right to delete")

    objects = open_object_store()
    segments = SegmentLog(Kept(objects), LOG)
    for start in range(0, 30, 5):
        await segments.seal(COMMITS[start - 1].revision if start else 0, COMMITS[start : start + 5])
    assert await everything(segments) == COMMITS
    assert len(await segments.names()) == 5
    # Whoever may remove them does so later.
    relay = SegmentLog(objects, LOG)
    await relay.seal(COMMITS[-1].revision, history(31)[30:])
    assert len(stored(objects)) == len(await relay.names()) == 6


@pytest.mark.parametrize(
    ("sizes", "size", "most", "count"),
    [
        ([], 5, 100, 0),
        ([5, 10, 20, 40], 5, 100, 4),
        ([5, 10, 20, 40], 4, 100, 0),
        ([5, 10, 20, 40], 5, 79, 3),
        ([5, 11, 1], 5, 100, 1),
        ([1], 100, 100, 0),
    ],
)
def test_as_many_are_merged_as_are_no_larger_than_what_they_join(sizes, size, most, count):
    assert merging.taken(sizes, size, most) == count


@given(st.data())
def test_whatever_relays_merge_and_remove_the_log_is_whole(data):
    """Relays that know the log of any time seal, merge some of what they know, and remove that, in any order."""
    stored, known, removable = set[Name](), [list[Name]()], list[list[Name]]()
    digests = (hashlib.sha256(b"%d" % nth).hexdigest() for nth in itertools.count())
    for _ in range(data.draw(st.integers(1, 20))):
        match data.draw(st.sampled_from(["look", "seal", "seal", "gather", "remove"])):
            case "look":
                known.append(chain(stored))
            case "seal":
                names = data.draw(st.sampled_from(known))
                count = data.draw(st.integers(0, len(names)))
                before = names[len(names) - count - 1] if count < len(names) else None
                last = (names[-1].last if names else 0) + data.draw(st.integers(1, 5))
                start, link = (before.last, before.link) if before else (0, BEGINNING)
                stored.add(Name(last, start, link, next(digests)))
                removable.append(names[len(names) - count :])
            case "gather":
                names = data.draw(st.sampled_from(known))
                if len(names) > 1:
                    start = data.draw(st.integers(0, len(names) - 2))
                    run = names[start : data.draw(st.integers(start + 1, len(names) - 1))]
                    stored.add(Name(run[-1].last, run[0].after, run[0].previous, next(digests)))
                    removable.append(run)
            case "remove":
                if removable:
                    stored -= set(removable.pop(data.draw(st.integers(0, len(removable) - 1))))
        found = chain(stored)
        assert [name.last for name in found] == sorted({name.last for name in found})
        assert all(name.after <= before for name, before in zip(found, [0, *(n.last for n in found)], strict=False))
        assert max((name.last for name in stored), default=0) == (found[-1].last if found else 0)
