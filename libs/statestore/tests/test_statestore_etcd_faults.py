"""etcd killed, stopped and compacted under leases, watches and writers."""

import asyncio
import contextlib
import os
import signal

import pytest

from deploy.stack import running
from deploy.stack.etcd import Etcd
from distroml.statestore import CasConflict, Compacted, LeaseGone, StateStoreDown
from distroml.statestore.etcd import ops
from distroml.statestore.etcd.messages import TxnRequest
from libs.statestore.tests.etcds import cluster, store_on, url


@pytest.fixture
def server(tmp_path):
    """An etcd of the test's own, to be mistreated."""
    with running(Etcd(), tmp_path / "etcd") as server:
        yield server


@pytest.fixture
async def store(server):
    store = store_on(url(server))
    yield store
    await store.close()


async def collect(store, prefix, after, found):
    async for batch in store.watch(prefix, after=after):
        found += [(change.key, change.value) for change in batch]


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def ended(store, key):
    """Return once a lease has ended and taken its key along; when that is judged is up to a busy machine."""
    async with asyncio.timeout(60):
        while await store.get(key) is not None:
            await asyncio.sleep(0.05)


async def count_up(store, start, stop):
    """Write `c/n` for each number, trying again after each outage; what was written meanwhile counts."""
    for n in range(start, stop):
        while True:
            try:
                await store.cas(f"c/{n}", b"%d" % n, expected=0)
            except StateStoreDown:
                continue
            except CasConflict:
                pass
            break


async def held(store):
    return [entry.key for entry in (await store.list("holders/")).entries]


async def hold(store, key, ttl_s):
    """Hold a key by a lease, and renew that through outages until cancelled; ends where the lease is gone."""
    lease = await store.grant(ttl_s)
    await store.cas(f"holders/{key}", b"", expected=0, lease=lease)
    while True:
        with contextlib.suppress(StateStoreDown):
            await store.keep_alive(lease)
        await asyncio.sleep(ttl_s / 5)


@contextlib.asynccontextmanager
async def holders(store, ttl_s):
    tasks = [asyncio.create_task(hold(store, key, ttl_s)) for key in "abc"]
    async with asyncio.timeout(5):
        while len(await held(store)) < 3:
            await asyncio.sleep(0.05)
    yield tasks
    for task in tasks:
        task.cancel()


async def test_kill_and_restart_lose_no_change_and_no_lease(server, store):
    lease = await store.grant(30)
    await store.cas("member", b"", expected=0, lease=lease)
    found = []
    watching = asyncio.create_task(collect(store, "c/", (await store.list("")).revision, found))
    writing = asyncio.create_task(count_up(store, 0, 300))
    for _ in range(3):
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        await store.keep_alive(lease)
    await writing
    await until(lambda: len(found) >= 300)
    assert found == [(f"c/{n}", b"%d" % n) for n in range(300)]
    assert await store.get("member") is not None
    watching.cancel()


async def test_a_restart_in_order_is_noticed_by_nobody(server, store):
    found = []
    async with holders(store, 2):
        watching = asyncio.create_task(collect(store, "c/", (await store.list("")).revision, found))
        writing = asyncio.create_task(count_up(store, 0, 200))
        for _ in range(2):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.restart)
        await writing
        await until(lambda: len(found) >= 200)
        assert found == [(f"c/{n}", b"%d" % n) for n in range(200)]
        assert len(await held(store)) == 3
        watching.cancel()


async def test_a_call_waits_through_a_restart_where_it_was_not_sent(server):
    await asyncio.to_thread(server.kill)
    # Over a connection that had been there it might have been sent.
    store = store_on(url(server), timeout_s=30)
    waiting = asyncio.create_task(store.cas("l", b"2", expected=0))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await asyncio.to_thread(server.restart)
    assert (await waiting).key == "l"
    await store.close()


async def test_an_outage_longer_than_the_timeout_is_told(server):
    store = store_on(url(server), timeout_s=2.0)
    await asyncio.to_thread(server.kill)
    with pytest.raises(StateStoreDown, match="nothing listens there: start etcd"):
        await store.get("k")
    await asyncio.to_thread(server.restart)
    assert await store.get("k") is None
    await store.close()


async def test_a_stopped_server_is_told_and_then_gone_on_with(server):
    store = store_on(url(server), timeout_s=1.0)
    lease = await store.grant(4)
    await store.cas("member", b"", expected=0, lease=lease)
    found = []
    watching = asyncio.create_task(collect(store, "", (await store.list("")).revision, found))
    await asyncio.sleep(0.1)
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(StateStoreDown, match="not known what became of the call"):
        await store.cas("k", b"1", expected=0)
    with pytest.raises(StateStoreDown, match="did not answer in time"):
        await store.get("k")
    os.kill(server.pid, signal.SIGCONT)
    await store.keep_alive(lease)
    await count_up(store, 0, 3)
    await until(lambda: [key for key, _ in found if key != "k"] == ["c/0", "c/1", "c/2"])
    # A write that nobody knew the outcome of was carried out once or not at all.
    written = await store.get("k")
    assert [key for key, _ in found].count("k") == (written is not None)
    assert await store.get("member") is not None
    watching.cancel()
    await store.close()


async def test_a_server_that_stood_still_for_longer_than_a_ttl_evicts_nobody(server):
    store = store_on(url(server), timeout_s=1.0)
    async with holders(store, 2) as tasks:
        everyone = ["holders/a", "holders/b", "holders/c"]
        await asyncio.sleep(2)
        os.kill(server.pid, signal.SIGSTOP)
        await asyncio.sleep(6)
        os.kill(server.pid, signal.SIGCONT)
        await asyncio.sleep(4)
        assert await held(store) == everyone
        # Who is dead among the living ends alone.
        tasks[1].cancel()
        await asyncio.sleep(1)
        assert await held(store) == everyone
        async with asyncio.timeout(30):
            while await held(store) == everyone:
                await asyncio.sleep(0.1)
        assert await held(store) == ["holders/a", "holders/c"]
    await store.close()


async def test_a_lease_not_renewed_while_the_server_is_away_ends_a_ttl_after_it_is_back(server, store):
    lease = await store.grant(1)
    await store.cas("member", b"", expected=0, lease=lease)
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(2)
    await asyncio.to_thread(server.restart)
    assert await store.get("member") is not None
    await ended(store, "member")
    with pytest.raises(LeaseGone):
        await store.keep_alive(lease)


async def test_a_lease_ends_though_its_holder_s_process_is_gone(server):
    store = store_on(url(server), deployment="dep-1")
    lease = await store.grant(1)
    await store.cas("member", b"", expected=0, lease=lease)
    await store.close()
    await asyncio.sleep(2)
    # Nobody was there to judge; whoever comes grants a full ttl first.
    other = store_on(url(server), deployment="dep-1")
    assert await other.get("member") is not None
    await ended(other, "member")
    await other.close()


async def test_a_watch_from_before_a_compaction_must_list_again(server, store):
    first = await store.cas("k", b"1", expected=0)
    second = await store.cas("k", b"2", expected=first.revision)
    await store.client.compact(second.revision)
    with pytest.raises(Compacted, match="list again"):
        await anext(store.watch("k", after=first.revision - 1))
    listing = await store.list("k")
    assert listing.entries == (second,)
    await store.cas("k", b"3", expected=second.revision)
    ((change,),) = [await anext(store.watch("k", after=listing.revision))]
    assert change.value == b"3"


async def test_compaction_disturbs_no_watch_that_is_up_to_date(server, store):
    found = []
    watching = asyncio.create_task(collect(store, "k/", (await store.list("")).revision, found))
    for n in range(5):
        entry = await store.cas(f"k/{n}", b"%d" % n, expected=0)
        await until(lambda n=n: len(found) == n + 1)
        await store.client.compact(entry.revision)
    # Interrupted, it goes on from what it saw last.
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    await store.cas("k/5", b"5", expected=0)
    await until(lambda: len(found) == 6)
    assert not watching.done()
    watching.cancel()


async def test_a_watch_whose_gap_was_compacted_while_it_was_away_must_list_again(server, store):
    watch = store.watch("k", after=(await store.list("")).revision)
    waiting = asyncio.create_task(anext(watch))
    entry = await store.cas("other", b"0", expected=0)
    await store.cas("other", b"1", expected=entry.revision)
    newest = await store.list("")
    await store.client.compact(newest.revision)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    with pytest.raises(Compacted):
        await asyncio.wait_for(waiting, 10)


async def test_an_idle_watch_that_was_told_of_progress_outlives_compaction(tmp_path):
    options = ("--watch-progress-notify-interval", "200ms")
    with running(Etcd(options=options), tmp_path / "etcd") as server:
        store = store_on(url(server))
        waiting = asyncio.create_task(anext(store.watch("k", after=(await store.list("")).revision)))
        entry = await store.cas("other", b"0", expected=0)
        await store.cas("other", b"1", expected=entry.revision)
        newest = await store.list("")
        await asyncio.sleep(1)
        await store.client.compact(newest.revision)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        await store.cas("k", b"1", expected=0)
        (change,) = await asyncio.wait_for(waiting, 10)
        assert (change.key, change.value) == ("k", b"1")
        await store.close()


async def test_large_batches_come_whole_by_revision(store):
    after = (await store.list("")).revision
    for n in range(6):
        await store.cas(f"k/{n}", b"%d" % n * 1_000_000, expected=0)
    seen = []
    async for batch in store.watch("k/", after=after):
        seen += [(change.key, len(change.value)) for change in batch]
        if len(seen) == 6:
            break
    assert seen == [(f"k/{n}", 1_000_000) for n in range(6)]


async def test_the_next_member_takes_over(tmp_path):
    with cluster(tmp_path, 3) as members:
        store = store_on(*map(url, members))
        found = []
        async with holders(store, 4):
            watching = asyncio.create_task(collect(store, "c/", (await store.list("")).revision, found))
            await count_up(store, 0, 20)
            # The one that is spoken to; then, with it back, the next one, which this time falls silent.
            await asyncio.to_thread(members[0].kill)
            await count_up(store, 20, 40)
            await asyncio.to_thread(members[0].restart)
            os.kill(members[1].pid, signal.SIGSTOP)
            await count_up(store, 40, 60)
            await until(lambda: len(found) >= 60, within_s=30)
            os.kill(members[1].pid, signal.SIGCONT)
            assert found == [(f"c/{n}", b"%d" % n) for n in range(60)]
            assert len(await held(store)) == 3
            watching.cancel()
        await store.close()


async def test_leases_are_judged_again_after_what_nobody_foresaw(store, caplog):
    strange = f"{store.deployment}/lease/lease-{1:016x}".encode()
    lease = await store.grant(1)
    await store.client.txn(TxnRequest(success=(ops.put(strange, b"no number"),)))
    await store.cas("member", b"", expected=0, lease=lease)
    await until(lambda: "leases could not be judged" in caplog.text)
    assert await store.get("member") is not None
    await store.client.txn(TxnRequest(success=(ops.delete(strange),)))
    await ended(store, "member")
