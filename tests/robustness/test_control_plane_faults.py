"""Whatever stands still, dies, is full or lost: every decision is made once, and a job trains on all the while."""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from nats.js.errors import NotFoundError

from distroml.cli.plane.control import connect_or_fail
from distroml.events import Position, Recorded
from distroml.eventstore.jetstream.subjects import stream_name
from distroml.statestore import Compacted, StateStoreError
from distroml.statestore.etcd import EtcdClient, ops
from distroml.statestore.etcd.messages import TxnRequest
from tests.e2e.conftest import Plane, wait_for
from tests.robustness.history import history_of, is_as_the_log_tells
from tests.robustness.observers import OBSERVERS, has_lines_once, scraped, traced
from tests.robustness.otherhost import other_host
from tests.robustness.record import Record
from tests.robustness.replicas import replicas, roles
from tests.robustness.stack import (
    LONGEST_S,
    REPLICATED,
    Stack,
    Training,
    all_well,
    pid_of,
    relay_metric,
    standing_still,
    stores_of,
    told_by_doctor,
    troubles,
)

STORM_S = float(os.environ.get("SOAK_S", "0"))
"""After so long no new round of kills begins; one there always is."""
PAUSE_S = 3.0 if STORM_S else 1.0
"""For how long a server that was killed stays away, at most."""
OUTAGE_STEPS = 1800 if STORM_S else 100
"""How long observers are gone, in steps of a tenth of a second or more."""
ALL_OF_IT_S = 120 + STORM_S / 10
"""How long the command line may take to go through all of the log, which a soak makes long."""
TOLD = {
    "telemetry": {"history", "log store", "traces"},
    "agent": {"log store", "traces"},
    "scheduler": {"traces"},
    "checkpoint": {"traces"},
}
"""Which services say so where observers are gone, in which parts of their health."""
NEARLY_BYTES = 4 << 20
"""What is left on a disk on which Elasticsearch lets nobody write any more: less than 5% of `DISK_BYTES`."""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600 + STORM_S)]


def test_services_that_stood_still_are_replaced_and_fenced(stacked: Plane, training: Training, record: Record) -> None:
    first = stacked.endpoints.services["scheduler"]
    before = asyncio.run(roles(stacked))
    with training.undisturbed(), replicas(stacked) as second:
        supervisor = psutil.Process(connect_or_fail(stacked.folder).supervisor)
        # It would soon kill who is silent.
        with standing_still([supervisor]):
            zombies = [psutil.Process(stacked.pid(service)) for service in REPLICATED]
            with standing_still(zombies):
                record.befell("stood still", *REPLICATED)
                training.ask_at(second["scheduler"])

                def replaced() -> bool:
                    now = asyncio.run(roles(stacked))
                    return now.keys() >= before.keys() and all(now[role] > before[role] for role in before)

                wait_for(replaced, 60, lambda: f"{before} {asyncio.run(roles(stacked))} {training.words()}")
                training.orders_go_on()
                training.goes_on()
            training.ask_at(first, second["scheduler"])
            after = asyncio.run(roles(stacked))
            wait_for(lambda: all_well(stacked), 60, training.words)
            training.orders_go_on()
            assert asyncio.run(roles(stacked)) == after, "who was replaced takes nothing back from a living replica"
        training.ask_at(first)


def test_a_log_that_was_deleted_is_loaded_again(stacked: Plane, training: Training, record: Record) -> None:
    async def messages(*, delete: bool = False) -> int:
        async with stores_of(stacked) as stores:
            manager, name = stores.connection.client.jsm(), stream_name(stacked.folder.deployment())
            try:
                found = (await manager.stream_info(name)).state.messages
            except NotFoundError:
                return 0
            if delete:
                await manager.delete_stream(name)
            return found

    with training.undisturbed():
        before = asyncio.run(messages(delete=True))
        record.befell("stream deleted", "nats")
        training.orders_go_on()
        wait_for(lambda: asyncio.run(messages()) >= before, 60, training.words)


def test_watches_go_on_past_history_that_was_compacted(
    stacked: Plane, stack: Stack, training: Training, record: Record
) -> None:
    async def forget() -> None:
        async with stores_of(stacked) as stores:
            client: EtcdClient = stores.state.client
            _, seen = await stores.events.parts("fences/")
            put = TxnRequest(success=(ops.put(b"ballast", b""),))
            newest = max([ops.revision_of(await client.txn(put, repeatable=True)) for _ in range(3)])
            await client.compact(newest)
            with pytest.raises(Compacted):
                await anext(aiter(stores.state.watch("", after=seen)))

    with training.undisturbed():
        # Their watches have seen less than what etcd still keeps, and broken, they ask for it.
        readers = [psutil.Process(stacked.pid(service)) for service in stacked.folder.services()]
        with standing_still(readers):
            stack.servers["etcd"].restart()
            asyncio.run(forget())
            record.befell("stood still", *stacked.folder.services())
            record.befell("history compacted", "etcd")
            training.goes_on()


@pytest.mark.parametrize(
    ("name", "service", "part", "says"),
    [
        # It writes on into what it has set aside for that, and ends when it needs more.
        ("etcd", "scheduler", "etcd", "nothing listens there"),
        ("nats", "relay", "publishing", "restart it"),
        ("minio", "relay", "sealing", "no room"),
        ("postgres", "telemetry", "history", "No space left on device"),
    ],
)
def test_a_full_disk_is_refused_clearly_and_nothing_is_lost(
    stacked: Plane, stack: Stack, training: Training, record: Record, name: str, service: str, part: str, says: str
) -> None:
    with training.undisturbed():
        with stack.disks[name].full():
            record.befell("disk full", name)
            if name == "etcd":
                asyncio.run(_write_until_refused(stacked))
            wait_for(lambda: says in troubles(stacked, service).get(part, ""), 60, training.words)
            wait_for(lambda: says in told_by_doctor(stacked), 60, lambda: told_by_doctor(stacked))
            training.goes_on()
            if name != "etcd":
                # Decisions are made and read while nothing else can be written.
                training.orders_go_on()
            order = training.accepted()
        if name in ("etcd", "nats"):
            # They say so themselves: a write that failed is mended by a restart only.
            stack.servers[name].restart()
        wait_for(lambda: not troubles(stacked, "telemetry"), 60, training.words)
        wait_for(lambda: history_of(stacked, training.job).job.spec.priority >= order, 60, training.words)


def test_full_disks_under_servers_that_only_look_on_are_told_and_caught_up_with(
    stacked: Plane, stack: Stack, training: Training, record: Record
) -> None:
    disks, prometheus = stack.disks, stack.servers["prometheus"]
    assert not [*disks["jaeger"].folder.iterdir()], "it keeps traces in memory, and has no disk to be full"

    full = re.compile(r"disk usage exceeded.*; make room on its disks")
    with training.undisturbed():
        # Nearly is enough: from there on it lets nobody write until it sees that there is room.
        with disks["prometheus"].full(), disks["elasticsearch"].nearly_full(NEARLY_BYTES) as fill:
            wait_for(lambda: full.search(troubles(stacked, "agent").get("log store", "")), 60, training.words)
            wait_for(lambda: full.search(told_by_doctor(stacked)), 60, lambda: told_by_doctor(stacked))
            fill()
            record.befell("disk full", "prometheus", "elasticsearch")
            training.goes_on()
            training.orders_go_on()
            # Nobody of ours writes to Prometheus: what it has is what tells.
            wait_for(lambda: scraped(prometheus) == 0, 60, prometheus.log)
            assert "no space left on device" in prometheus.log()
            lines = training.pace.made()
        has_lines_once(stacked, training.job, lines)
        wait_for(lambda: scraped(prometheus) == len(stacked.folder.services()), 60, prometheus.log)


def test_a_node_cut_off_from_all_services_trains_on_and_reports_afterwards(
    stacked: Plane, training: Training, record: Record, tmp_path: Path
) -> None:
    with training.undisturbed(), other_host(stacked, tmp_path / "other") as host:
        there = Training(stacked, tmp_path / "job")
        there.folder.mkdir()
        there.submit()
        wait_for(there.committed, 120, there.words)
        since = there.pace.made()
        with host.cut_off():
            record.befell("cut off", "agent")
            # Past several checkpoints, which nobody can take now.
            there.goes_on(steps=60)
            at = there.committed()
        wait_for(lambda: there.committed() > at, 60, there.words)
        assert there.pace.longest_s(since) < LONGEST_S
        assert len(there.data("GenerationFormed")) == 1
        steps = [int(e["step"]) for e in there.data("StepRecorded")]
        assert steps == sorted(set(steps))
        there.cancel()


def test_servers_that_only_look_on_are_missed_by_nobody(
    stacked: Plane, stack: Stack, training: Training, record: Record
) -> None:
    with training.undisturbed():
        for name in OBSERVERS:
            stack.servers[name].kill()
        record.befell("gone", *OBSERVERS)
        training.goes_on(OUTAGE_STEPS)
        training.orders_go_on()
        assert (
            "Elasticsearch is not reached"
            in stacked.cli("job", "logs", training.job, "--search", "line", code=3).stderr
        )
        for service, parts in TOLD.items():
            wait_for(lambda s=service, p=parts: p <= troubles(stacked, s).keys(), 120, training.words)
        order, lines = training.accepted(), training.pace.made()
        for name in OBSERVERS:
            stack.servers[name].restart()
        wait_for(lambda: not troubles(stacked, "telemetry"), 120, training.words)
        wait_for(lambda: history_of(stacked, training.job).job.spec.priority >= order, 120, training.words)
        # What could not be shipped waited.
        has_lines_once(stacked, training.job, lines)
        # Its traces went with Jaeger; these are new ones.
        wait_for(
            lambda: {"scheduler", "checkpoint", "agent", "worker"} <= traced(stack.servers["jaeger"]),
            120,
            lambda: f"{traced(stack.servers['jaeger'])}",
        )
        wait_for(lambda: scraped(stack.servers["prometheus"]) == len(stacked.folder.services()), 120, training.words)


def test_whoever_is_killed_at_random_comes_back(
    stacked: Plane, stack: Stack, training: Training, record: Record
) -> None:
    seed = int(os.environ.get("SOAK_SEED") or secrets.randbits(32))
    print(f"{STORM_S:.0f} s of kills, seed {seed}: again with SOAK_SEED={seed}")
    record.run["seed"] = seed
    chance = random.Random(seed)
    targets = [*stacked.folder.services(), *stack.servers]
    killed: Counter[str] = Counter()
    until = time.monotonic() + STORM_S
    with training.undisturbed():
        while not killed or time.monotonic() < until:
            for target in chance.sample(targets, len(targets)):
                at = training.pace.slowest()
                print(f"kill -9 {target}")
                if target in stack.servers:
                    stack.servers[target].kill()
                    time.sleep(chance.uniform(0, PAUSE_S))
                    stack.servers[target].restart()
                else:
                    # It may still be on its way back from the last time.
                    pid = wait_for(lambda t=target: pid_of(stacked, t), 60, training.words)
                    os.kill(pid, signal.SIGKILL)
                    wait_for(lambda t=target, p=pid: pid_of(stacked, t) not in (0, p), 60, training.words)
                killed[target] += 1
                record.befell("killed", target)
                wait_for(lambda s=at: training.pace.slowest() > s, 60, training.words)
    print(f"killed: {dict(killed)}")
    assert killed.keys() == set(targets)
    assert len(set(killed.values())) == 1


def test_in_the_end_every_decision_was_made_once(
    stacked: Plane, stack: Stack, training: Training, record: Record
) -> None:
    training.end_clerk()
    training.cancel()
    log = asyncio.run(_log(stacked))
    # All of it is in segments, too, and has left the outbox; what services did since then may come after it.
    wait_for(lambda: relay_metric(stacked, "distroml_relay_outbox_commits") == 0, 60, training.words)
    wait_for(lambda: relay_metric(stacked, "distroml_relay_lag_seconds") == 0, 60, training.words)

    def all_sealed() -> Sequence[Recorded]:
        # A relay that has just begun says that nothing waits before it has looked.
        found = asyncio.run(_sealed(stacked))
        return found[: len(log)] if len(found) >= len(log) else ()

    sealed = wait_for(all_sealed, 60, training.words)
    assert [one.position for one in log] == [one.position for one in sealed]
    assert log == sealed
    record.checked("commits that the log and the segments have alike", len({one.position.revision for one in log}))
    record.checked("events of theirs", len(log))
    assert all(low.position < high.position for low, high in pairwise(log))
    assert len({one.id for one in log}) == len(log)
    versions: dict[str, int] = {}
    for one in log:
        assert one.version == versions.get(one.stream, 0) + 1, one
        versions[one.stream] = one.version
    record.checked("streams whose versions follow one another", len(versions))
    orders = [int(e["priority"]) for e in training.data("PriorityChanged")]
    assert orders == list(range(1, len(orders) + 1)), "each order was carried out once, one after the other"
    assert training.accepted() <= len(orders) <= training.accepted() + 1
    record.checked("orders that were carried out once, one after the other", len(orders))
    assert "replay verified" in stacked.cli("replay", "--verify", timeout=ALL_OF_IT_S).stdout
    assert "sound" in stacked.cli("checkpoints", "verify", training.job, timeout=ALL_OF_IT_S).stdout
    record.checked("checkpoints committed", len(training.data("Committed")))
    head = asyncio.run(_head(stacked))
    wait_for(lambda: history_of(stacked, training.job).position == str(head), 60, training.words)
    log = asyncio.run(_log(stacked))
    is_as_the_log_tells(stacked, stack.servers["postgres"], training, log, ALL_OF_IT_S)
    record.checked("public events that history has, and no others", sum(one.public for one in log))


async def _write_until_refused(plane: Plane) -> None:
    """Large values into etcd, beside the deployment's own."""
    async with stores_of(plane) as stores:
        put = ops.put(b"ballast", secrets.token_bytes(1 << 20))
        with suppress(StateStoreError):
            while True:
                await stores.state.client.txn(TxnRequest(success=(put,)), repeatable=True)


async def _head(plane: Plane) -> Position:
    async with stores_of(plane) as stores:
        return await stores.events.head()


async def _log(plane: Plane) -> Sequence[Recorded]:
    """The whole log as readers see it."""
    async with stores_of(plane) as stores:
        return await stores.events.read(limit=1_000_000)


async def _sealed(plane: Plane) -> Sequence[Recorded]:
    """The whole log as the segments have it."""
    async with stores_of(plane) as stores:
        assert await stores.segments.verify() == []
        return [recorded async for entry in stores.segments.commits(after=0) for recorded in entry.events]
