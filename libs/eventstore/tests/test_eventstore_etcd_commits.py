"""Commits on a real etcd beyond the port's promises: lost answers, limits, leases, other processes, damage."""

import asyncio
from collections import Counter

import pytest

from deploy.stack import running
from deploy.stack.etcd import Etcd
from distroml.eventstore import (
    COMMAND_TTL_S,
    MAX_COMMIT_OPERATIONS,
    MAX_EVENT_BYTES,
    Append,
    CommandKnown,
    CommandRecord,
    Commit,
    CommitRefused,
    Fenced,
    Guard,
    Part,
    StoreDamaged,
    StoreDown,
    StoreFull,
    WrongExpectedVersion,
)
from distroml.eventstore.conformance import CONTEXT, append, commit_of, event, take
from distroml.eventstore.etcd import Keys
from distroml.eventstore.etcd.transaction import Transaction
from distroml.statestore.etcd import ops
from distroml.statestore.etcd.messages import RangeRequest, TxnRequest
from libs.eventstore.tests.on_etcd import deployment


@pytest.fixture
async def stores(etcd):
    async with deployment(etcd) as stores:
        yield stores


def with_command(id, *appends):
    return Commit(context=CONTEXT, appends=appends, command=CommandRecord(id, b"hash", b"answer"))


async def test_a_commit_sent_twice_is_carried_out_once(stores):
    commit = commit_of(append("s/a/1", 0, 2), append("s/b/1", 0), parts=(Part("k", b"v"),))
    transaction = Transaction(stores.keys, stores.events.log_id, commit, "entry-1")
    assert transaction.repeatable
    first = await stores.client.txn(transaction.request())
    assert first.succeeded
    again = await stores.client.txn(transaction.request())
    assert not again.succeeded
    told = transaction.told(await stores.client.txn(transaction.reading()))
    assert told == transaction.committed(ops.revision_of(first))
    assert tuple(await stores.events.read()) == told.events


async def test_what_only_writes_parts_is_not_sent_twice(stores):
    transaction = Transaction(stores.keys, "log", commit_of(parts=(Part("k", b"v"),)), "entry-1")
    assert not transaction.repeatable


async def test_the_reason_of_a_refusal_is_the_first_that_holds(stores):
    await stores.events.commit(with_command("cmd-1", append("s/a/1", 0)))
    wrong = (append("s/a/1", 5),)
    guard = (Guard("absent", revision=7),)
    with pytest.raises(CommandKnown):
        await stores.events.commit(
            Commit(context=CONTEXT, appends=wrong, guards=guard, command=CommandRecord("cmd-1", b"", b""))
        )
    with pytest.raises(Fenced):
        await stores.events.commit(
            Commit(context=CONTEXT, appends=wrong, guards=guard, command=CommandRecord("cmd-2", b"", b""))
        )
    with pytest.raises(WrongExpectedVersion):
        await stores.events.commit(Commit(context=CONTEXT, appends=wrong, command=CommandRecord("cmd-2", b"", b"")))
    assert await stores.events.command("cmd-2") is None


async def test_the_largest_commits_fit_into_etcd(stores):
    events = tuple(event(n, data=b"x" * (MAX_EVENT_BYTES - 200)) for n in range(8))
    parts = tuple(Part(f"p/{n}", b"y" * 60_000) for n in range(8))
    await stores.events.commit(commit_of(Append("s/a/1", 0, events), parts=parts))
    many = tuple(Part(f"q/{n}", b"z") for n in range(MAX_COMMIT_OPERATIONS - 3))
    guards = tuple(Guard(f"absent/{n}", revision=0) for n in range(MAX_COMMIT_OPERATIONS - 1))
    done = await stores.events.commit(
        Commit(
            context=CONTEXT,
            appends=(append("s/b/1", 0),),
            parts=many,
            guards=guards,
            command=CommandRecord("cmd-1", b"", b""),
        )
    )
    assert len(await stores.events.read()) == 9
    held = Guard("q/0", revision=done.revision)
    with pytest.raises(Fenced):
        await stores.events.commit(commit_of(parts=many, guards=(*guards[:-1], held, Guard("q/1", revision=1))))


async def test_records_of_commands_live_a_day_and_share_leases(stores):
    for n in range(3):
        await stores.events.commit(with_command(f"cmd-{n}", append("s/a/1", n)))
    (first, *others) = [
        (await stores.client.range(RangeRequest(key=stores.keys.command(f"cmd-{n}")))).kvs[0].lease for n in range(3)
    ]
    assert first > 0
    assert others == [first, first]
    # Somebody revokes it, as a restored snapshot may not know it: a new one is taken.
    await stores.client.revoke(first)
    assert await stores.events.command("cmd-1") is None
    await stores.events.commit(with_command("cmd-9", append("s/a/1", 3)))
    kv = (await stores.client.range(RangeRequest(key=stores.keys.command("cmd-9")))).kvs[0]
    assert kv.lease not in (0, first)
    assert COMMAND_TTL_S == 24 * 3600


async def test_a_commit_fenced_by_a_lease_ends_with_it(stores):
    lease = await stores.state.grant(60)
    leader = await stores.state.cas("leader", b"me", expected=0, lease=lease)
    guard = Guard("leader", revision=leader.revision)
    await stores.events.commit(commit_of(append("s/a/1", 0), guards=(guard,)))
    await stores.state.revoke(lease)
    with pytest.raises(Fenced):
        await stores.events.commit(commit_of(append("s/a/1", 1), guards=(guard,)))


async def test_a_part_is_unbound_from_its_lease_by_writing_it(stores):
    lease = await stores.state.grant(60)
    await stores.state.cas("st/k", b"1", expected=0, lease=lease)
    await stores.events.commit(commit_of(parts=(Part("st/k", b"2"),)))
    await stores.state.revoke(lease)
    assert (await stores.events.parts("st/"))[0] == {"st/k": b"2"}


async def test_a_full_outbox_refuses_and_takes_again(etcd):
    async with deployment(etcd, outbox_commits=3) as stores:
        for n in range(3):
            await stores.events.commit(commit_of(append("s/a/1", n)))
        with pytest.raises(StoreFull, match="See why the relay is behind"):
            await stores.events.commit(commit_of(append("s/a/1", 3)))
        await stores.events.commit(commit_of(parts=(Part("k", b"v"),)))
        await stores.outbox.trim(up_to=(await stores.events.head()).revision)
        async with asyncio.timeout(5):
            while await stores.events.version("s/a/1") == 3:
                try:
                    await stores.events.commit(commit_of(append("s/a/1", 3)))
                except StoreFull:
                    await asyncio.sleep(0.1)


async def test_a_subscription_hears_of_commits_of_another_process(etcd, stores):
    async with deployment(etcd, id=stores.events.log_id) as other:
        waiting = asyncio.create_task(take(stores.events.subscribe("d"), 2))
        await asyncio.sleep(0.2)
        await other.events.commit(commit_of(append("s/a/1", 0)))
        await asyncio.sleep(0.2)
        await other.events.commit(commit_of(append("s/a/1", 1)))
        assert [recorded.version for recorded in await waiting] == [1, 2]


async def test_deployments_of_one_etcd_do_not_meet(etcd, stores):
    async with deployment(etcd) as other:
        await stores.events.commit(with_command("cmd-1", append("s/a/1", 0)))
        await stores.state.cas("k", b"", expected=0)
        assert list(await other.events.read()) == []
        assert list(await other.events.streams()) == []
        assert (await other.events.head()).revision == 0
        assert await other.events.command("cmd-1") is None
        assert (await other.state.list("")).entries == ()
    with pytest.raises(ValueError, match="no id of a deployment"):
        Keys("a/b")


async def test_a_damaged_outbox_is_told(stores):
    done = await stores.events.commit(commit_of(append("s/a/1", 0)))
    (kv,) = (await stores.client.range_all(stores.keys.outbox))[0]
    assert kv.mod_revision == done.revision
    await stores.client.txn(TxnRequest(success=(ops.put(kv.key, b"\x93nothing"),)))
    with pytest.raises(StoreDamaged, match="restore etcd from a snapshot"):
        await stores.events.read()


async def test_bounds_hold_before_etcd_is_asked(stores):
    await stores.client.close()
    with pytest.raises(CommitRefused):
        await stores.events.commit(commit_of(append("s/a/1", 0), append("s/a/1", 1)))


async def write(store, stream, count, told):
    """Append one event after another, each with a command, through outages; note what was told as committed."""
    for version in range(count):
        while True:
            try:
                done = await store.commit(with_command(f"{stream}-{version}", append(stream, version)))
                told.append((stream, version + 1, done.revision))
            except StoreDown:
                continue
            except CommandKnown:
                pass
            break


async def test_kill_and_restart_lose_and_double_no_commit(tmp_path):
    with running(Etcd(), tmp_path / "etcd") as server:
        async with deployment(server, relayed=True, timeout_s=3.0) as stores:
            told = []
            streams = [f"s/a/{n}" for n in range(8)]
            writing = asyncio.gather(*(write(stores.events, stream, 150, told) for stream in streams))
            kills = 0
            while not writing.done() and kills < 6:
                await asyncio.sleep(0.2)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)
                kills += 1
            assert kills >= 3
            await writing
            found = await stores.events.read(limit=2000)
            assert Counter((one.stream, one.version) for one in found) == Counter(
                (stream, version) for stream in streams for version in range(1, 151)
            )
            places = [(one.position.revision, one.position.index) for one in found]
            assert places == sorted(places)
            assert set(told) <= {(one.stream, one.version, one.position.revision) for one in found}
            assert await stores.events.head() == found[-1].position
