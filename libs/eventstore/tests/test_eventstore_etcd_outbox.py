"""The outbox's promises, kept by a real etcd."""

import asyncio
import time
from functools import partial

import pytest

from distroml.eventstore.conformance import append, commit_of
from distroml.eventstore.etcd.newest import NewestCommits
from distroml.eventstore.etcd.transaction import Transaction, decode_entry
from distroml.eventstore.relay import OutboxTrimmed
from distroml.statestore.etcd import ops
from libs.eventstore.tests.on_etcd import deployment


@pytest.fixture
async def stores(etcd):
    async with deployment(etcd) as stores:
        yield stores


async def filled(stores, count):
    """Commits of one to three events, their revisions apart from one another."""
    done, version = [], 0
    for n in range(count):
        events = 1 + n % 3
        done.append(await stores.events.commit(commit_of(append("s/a/1", version, events))))
        version += events
        await stores.state.cas(f"k/{n}", b"", expected=0)
    return done


def as_pairs(found):
    return [(one.revision, one.events) for one in found]


async def test_commits_come_whole_and_by_rising_revision(stores):
    done = await filled(stores, 7)
    assert as_pairs(await stores.outbox.pending(after=0, limit=100)) == as_pairs(done)
    assert as_pairs(await stores.outbox.pending(after=0, limit=3)) == as_pairs(done[:3])
    for n, one in enumerate(done):
        assert as_pairs(await stores.outbox.pending(after=one.revision, limit=100)) == as_pairs(done[n + 1 :])
    assert list(await stores.outbox.pending(after=0, limit=0)) == []


async def test_whoever_reads_while_others_commit_misses_none(stores):
    async def commit(stream):
        for version in range(40):
            await stores.events.commit(commit_of(append(stream, version)))

    writing = asyncio.gather(*(commit(f"s/a/{n}") for n in range(8)))
    seen, after = [], 0
    while len(seen) < 320:
        await stores.outbox.wait(after=after, timeout_s=5)
        for entry in await stores.outbox.pending(after=after, limit=50):
            assert entry.revision > after
            seen += [(one.stream, one.version) for one in entry.events]
            after = entry.revision
    await writing
    assert len(seen) == len(set(seen)) == 320


async def test_trimming_lets_go_up_to_a_revision_and_is_idempotent(stores):
    done = await filled(stores, 5)
    for _ in range(2):
        await stores.outbox.trim(up_to=done[2].revision)
        assert await stores.outbox.count() == 2
        assert await stores.outbox.trimmed() == (done[2].revision, len(done[2].events) - 1)
    assert as_pairs(await stores.outbox.pending(after=done[2].revision, limit=9)) == as_pairs(done[3:])
    with pytest.raises(OutboxTrimmed) as caught:
        await stores.outbox.pending(after=done[1].revision, limit=9)
    assert (caught.value.after, caught.value.trimmed) == (done[1].revision, done[2].revision)
    await stores.outbox.trim(up_to=done[0].revision)
    assert await stores.outbox.trimmed() == (done[2].revision, len(done[2].events) - 1)
    await stores.outbox.trim(up_to=done[-1].revision + 100)
    assert await stores.outbox.count() == 0
    assert await stores.events.head() == done[-1].events[-1].position


async def test_more_is_trimmed_than_one_transaction_holds(stores):
    async def commit(stream):
        for version in range(30):
            await stores.events.commit(commit_of(append(stream, version)))

    await asyncio.gather(*(commit(f"s/a/{n}") for n in range(10)))
    head = (await stores.events.head()).revision
    await asyncio.gather(*(stores.outbox.trim(up_to=head) for _ in range(3)))
    assert await stores.outbox.count() == 0
    assert (await stores.outbox.trimmed())[0] == head


async def test_waiting_ends_with_a_commit_or_the_time(stores):
    (done,) = await filled(stores, 1)
    began = time.monotonic()
    await stores.outbox.wait(after=0, timeout_s=10)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    await stores.outbox.wait(after=done.revision, timeout_s=0.3)
    assert time.monotonic() - began >= 0.3
    # Neither other keys nor trimming end it.
    waiting = asyncio.create_task(stores.outbox.wait(after=done.revision, timeout_s=30))
    await stores.state.cas("other", b"", expected=0)
    await stores.outbox.trim(up_to=done.revision)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await stores.events.commit(commit_of(append("s/a/1", 1)))
    await asyncio.wait_for(waiting, 5)


async def test_waiting_from_before_a_compaction_ends(stores):
    done = await filled(stores, 3)
    await stores.client.compact(done[-1].revision)
    await asyncio.wait_for(stores.outbox.wait(after=done[0].revision - 1, timeout_s=30), 5)


async def test_commits_whose_names_do_not_sort_by_age_come_in_order_and_all_leave(stores):
    """Writers' clocks are apart: the names of their commits say nothing of the order."""
    done = []
    for n in range(8):
        commit = commit_of(append(f"s/a/{n}", 0))
        transaction = Transaction(stores.keys, stores.events.log_id, commit, f"{1000 - n:04}")
        response = await stores.client.txn(transaction.request())
        done.append(transaction.committed(ops.revision_of(response)))
    assert as_pairs(await stores.outbox.pending(after=0, limit=100)) == as_pairs(done)
    await stores.outbox.trim(up_to=done[5].revision)
    assert await stores.outbox.trimmed() == (done[5].revision, 0)
    assert await stores.outbox.count() == 2
    assert as_pairs(await stores.outbox.pending(after=done[5].revision, limit=100)) == as_pairs(done[6:])


async def test_what_has_left_the_memory_is_listed(stores):
    newest = NewestCommits(
        stores.client, stores.keys.outbox, partial(decode_entry, stores.events.log_id), most_commits=4
    )
    done = await filled(stores, 3)
    begin = done[0].revision - 1
    newest.join(begin, (), begin)
    await asyncio.wait_for(newest.past(done[-1].revision - 1), 10)
    assert as_pairs(newest.next(begin, 9)) == as_pairs(done)
    more = [await stores.events.commit(commit_of(append("s/b/1", n))) for n in range(3)]
    await asyncio.wait_for(newest.past(more[-1].revision - 1), 10)
    kept = [*done, *more][-3:]
    assert [newest.covers(one.revision) for one in (*done, *more)] == [False, False, True, True, True, True]
    assert as_pairs(newest.next(done[-1].revision, 9)) == as_pairs(kept)
    # What was listed meanwhile joins it in front, once; the watch goes on.
    listed = await stores.outbox.pending(after=done[0].revision, limit=9)
    newest.join(done[1].revision, listed[1:], more[-1].revision)
    assert as_pairs(newest.next(done[1].revision, 2)) == as_pairs([done[2], more[0]])
    await newest.close()
    assert not newest.begun


async def test_nobody_waits_for_a_watch_that_broke(stores):
    def broken(kv):
        raise RuntimeError("nobody foresaw this")

    newest = NewestCommits(stores.client, stores.keys.outbox, broken)
    newest.join(0, (), (await stores.state.list("")).revision)
    waiting = asyncio.create_task(newest.past((await stores.state.list("")).revision))
    await stores.events.commit(commit_of(append("s/a/1", 0)))
    async with asyncio.timeout(20):
        await waiting
    assert not newest.begun
    await newest.close()
