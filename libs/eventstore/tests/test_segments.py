import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.eventstore import StoreDamaged, StoreDown
from distroml.eventstore.segments import SegmentLog
from distroml.eventstore.segments.chain import chain, extended
from distroml.eventstore.segments.format import BEGINNING, Name, decode, decode_header, encode, header_end
from distroml.objectstore import ObjectStoreDown
from distroml.objectstore.filesystem import open_object_store as open_folder
from distroml.objectstore.memory import open_object_store
from libs.eventstore.tests.log_parts import LOG, entry, events_of, history
from libs.eventstore.tests.segment_parts import COMMITS, everything, key_of, sealed


async def test_what_is_sealed_is_read_back_by_anybody():
    objects = open_object_store()
    segments = await sealed(objects, 1, 10, 25)
    for reader in (segments, SegmentLog(objects, LOG)):
        assert await reader.sealed() == COMMITS[24].revision
        assert await everything(reader) == COMMITS[:25]
        for n, one in enumerate(COMMITS[:25]):
            assert await everything(reader, one.revision) == COMMITS[n + 1 : 25]
            assert await everything(reader, one.revision - 1) == COMMITS[n:25]
        assert await reader.verify() == []
    assert await everything(SegmentLog(objects, "another")) == []


async def test_a_reader_sees_what_is_sealed_later():
    objects = open_object_store()
    writer, reader = SegmentLog(objects, LOG), SegmentLog(objects, LOG)
    assert await reader.sealed() == 0
    await writer.seal(0, COMMITS[:5])
    assert await everything(reader) == COMMITS[:5]
    await writer.seal(COMMITS[4].revision, COMMITS[5:7])
    assert await everything(reader) == COMMITS[:7]


async def test_a_stream_is_read_from_the_segments_that_hold_it():
    objects = open_object_store()
    segments = await sealed(objects, 1, 10, 25)
    for stream in ("s/a/1", "s/b.x/2 *>"):
        events = [recorded for recorded in events_of(COMMITS[:25]) if recorded.stream == stream]
        assert await segments.read_stream(stream, after=0, limit=1000) == events
        assert await segments.read_stream(stream, after=3, limit=4) == events[3:7]
        assert await segments.read_stream(stream, after=len(events), limit=4) == []
    assert await segments.read_stream("s/a/2", after=0, limit=4) == []


async def test_sealing_again_or_behind_changes_nothing():
    objects = open_object_store()
    segments = await sealed(objects, 10)
    assert await segments.seal(0, COMMITS[:4]) == COMMITS[9].revision
    assert len(await segments.names()) == 1
    with pytest.raises(ValueError, match="cannot go on after"):
        await segments.seal(COMMITS[12].revision, COMMITS[13:])


async def test_newest_counts_back_from_the_end():
    segments = await sealed(open_object_store(), 10, 20, 30)
    assert await segments.newest(0) == COMMITS[19].revision
    assert await segments.newest(1 << 30) == 0
    assert await SegmentLog(open_object_store(), LOG).newest(0) == 0


def test_no_changed_byte_is_believed():
    name, data = encode(LOG, 0, BEGINNING, COMMITS[:3])
    assert list(decode(name, data, LOG)) == COMMITS[:3]
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(StoreDamaged):
            decode(name, damaged, LOG)
    for length in range(0, len(data), 7):
        with pytest.raises(StoreDamaged):
            decode(name, data[:length], LOG)


def test_no_changed_byte_of_a_header_read_alone_is_believed():
    name, data = encode(LOG, 0, BEGINNING, COMMITS[:3])
    end = header_end(name, data)
    assert decode_header(name, data[:end], LOG).streams["s/a/1"] == (1, 4)
    for at in range(end):
        with pytest.raises(StoreDamaged):
            decode_header(name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 : end], LOG)
    with pytest.raises(StoreDamaged, match="of log"):
        decode_header(name, data, "another")
    with pytest.raises(StoreDamaged, match="of log"):
        decode_header(dataclasses.replace(name, after=1), data, LOG)


def test_a_segment_of_no_or_falling_commits_is_refused():
    for after, previous, entries in (
        (0, BEGINNING, []),
        (3, "a" * 16, COMMITS[:2]),
        (0, BEGINNING, COMMITS[1::-1]),
        (2, BEGINNING, COMMITS[:2]),
        (0, "a" * 16, COMMITS[:2]),
    ):
        with pytest.raises(ValueError):
            encode(LOG, after, previous, entries)
    strange = dataclasses.replace(COMMITS[0], events=COMMITS[1].events)
    with pytest.raises(ValueError, match="holds"):
        encode(LOG, 0, BEGINNING, [strange])


def test_names_are_read_back_and_sort_by_their_end():
    name, _ = encode(LOG, 0, BEGINNING, COMMITS)
    assert Name.parse(str(name)) == name
    assert Name.parse(str(name) + "x") is None
    assert str(dataclasses.replace(name, last=9)) < str(dataclasses.replace(name, last=10))


async def test_damage_and_loss_are_named_and_never_read():
    objects = open_object_store()
    segments = await sealed(objects, 10, 20, 30)
    first, second, third = await segments.names()
    whole = objects.get(key_of(second))
    objects.put(key_of(second), whole[:-1])
    reader = SegmentLog(objects, LOG)
    with pytest.raises(StoreDamaged, match="hash in its name"):
        await everything(reader)
    assert await everything(reader, COMMITS[19].revision) == COMMITS[20:]
    (found,) = await reader.verify()
    assert str(second) in found
    objects.delete(key_of(second))
    with pytest.raises(StoreDamaged, match="missing before"):
        await everything(SegmentLog(objects, LOG))
    assert len(await reader.verify()) == 1
    objects.put(key_of(second), whole)
    assert await everything(SegmentLog(objects, LOG)) == COMMITS
    objects.delete(key_of(first))
    with pytest.raises(StoreDamaged, match="is missing"):
        await everything(segments)
    assert third.last == COMMITS[-1].revision


def segment(after, last, previous=None):
    link = BEGINNING if previous is None else previous.link
    return encode(LOG, after, link, [entry(n, ("s/a", n)) for n in range(after + 1, last + 1)])


async def test_a_zombies_segments_never_hide_what_was_sealed():
    first, one = segment(0, 10)
    ours, two = segment(10, 20, first)
    theirs, other = segment(10, 15, first)
    further, more = segment(15, 18, theirs)
    for order in itertools.permutations([(first, one), (ours, two), (theirs, other), (further, more)]):
        objects = open_object_store()
        for name, data in order:
            objects.put(key_of(name), data)
        reader = SegmentLog(objects, LOG)
        assert await reader.sealed() == 20
        assert [found.revision async for found in reader.commits(after=0)] == list(range(1, 21))
    furthest, most = segment(18, 25, further)
    objects.put(key_of(furthest), most)
    # The reader had not looked at the zombie's branch before, and now it reaches furthest.
    assert [found.revision async for found in reader.commits(after=0)] == list(range(1, 26))
    assert await reader.verify() == []


@given(st.data())
def test_any_true_pieces_make_a_chain_that_reaches_the_furthest(data):
    """Writers that each extend any segment they have seen: the chain is whole, and ends at the greatest revision."""
    names = [segment(0, data.draw(st.integers(1, 5)))[0]]
    for _ in range(data.draw(st.integers(0, 6))):
        base = data.draw(st.sampled_from(names))
        names.append(segment(base.last, base.last + data.draw(st.integers(1, 5)), base)[0])
    found = chain(data.draw(st.permutations(names)))
    # Whoever hears of them one after the other comes to the same, or is told to look at all of them.
    known: list[Name] = []
    for nth, name in enumerate(sorted(names, key=str), start=1):
        try:
            known = extended(known, [name])
        except StoreDamaged:
            known = chain(sorted(names, key=str)[:nth])
    assert known == found
    assert found[0].after == 0
    assert all(low.last == high.after and low.link == high.previous for low, high in itertools.pairwise(found))
    assert found[-1].last == max(name.last for name in names)


def test_what_is_new_is_looked_at_and_no_more():
    class Long(list):
        """As known segments are when there are hundreds of thousands."""

        def __iter__(self):
            raise AssertionError("all of them were looked at")

    first, _ = segment(0, 10)
    second, _ = segment(10, 20, first)
    third, _ = segment(20, 30, second)
    zombies, _ = segment(10, 40, first)
    assert extended(Long([first, second]), [third]) == [first, second, third]
    assert extended(Long([first, second, third]), [zombies]) == [first, zombies]
    assert extended([first], []) == [first]
    with pytest.raises(StoreDamaged, match="is missing before"):
        extended(Long([first]), [third])


async def test_the_object_stores_trouble_is_told_in_our_words():
    class Gone:
        def list(self, *_args, **_keywords):
            raise ObjectStoreDown("no route")

    with pytest.raises(StoreDown, match="segments: no route"):
        await SegmentLog(Gone(), LOG).sealed()


CHILD = """
import asyncio, sys
from pathlib import Path
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore.filesystem import open_object_store
from distroml.statestore import failpoint
from libs.eventstore.tests.log_parts import LOG, history

async def main():
    segments = SegmentLog(open_object_store(Path(sys.argv[1])), LOG)
    commits = history(30)
    await segments.seal(0, commits[:10])
    await segments.seal(commits[9].revision, commits[10:20])
    await segments.seal(commits[19].revision, commits[20:])
    print(failpoint.hits())

asyncio.run(main())
"""


@pytest.mark.parametrize("failpoint", ["segments.seal", "segments.remove", "object.put"])
async def test_killed_anywhere_the_log_is_readable_and_goes_on(tmp_path, failpoint):
    def child(folder, spec):
        environment = os.environ | {"DISTROML_FAILPOINT": spec}
        return subprocess.run(
            [sys.executable, "-c", CHILD, folder], env=environment, capture_output=True, text=True, timeout=60
        )

    points = int(child(tmp_path / "all", f"{failpoint}:count").stdout)
    assert points >= 4
    with ThreadPoolExecutor(2) as pool:
        killed = pool.map(lambda n: child(tmp_path / str(n), f"{failpoint}:kill:{n}"), range(1, points + 1))
    assert {done.returncode for done in killed} == {-signal.SIGKILL}
    ends = set()
    for n in range(1, points + 1):
        segments = SegmentLog(open_folder(tmp_path / str(n)), LOG)
        assert await segments.verify() == []
        found = await everything(segments)
        ends.add(len(found))
        assert found == COMMITS[: len(found)]
        for one in (*COMMITS[len(found) :], *history(32)[30:]):
            await segments.seal(await segments.sealed(), [one])
        assert await everything(segments) == history(32)
        await segments._removed()
        assert len(list(segments._objects.list())) == len(await segments.names())
    assert ends == ({0, 10, 20} if failpoint == "segments.remove" else {0, 10, 20, 30})
