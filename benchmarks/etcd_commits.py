"""Commits through etcd against the same transactions sent by the same client without the event store around them.

Run: python benchmarks/etcd_commits.py [--seconds 3] [--pairs 5]   (installs and starts etcd, which syncs to its disk)

A block of commits and a block of bare transactions alternate, at 1, 16 and 64 callers; both write the same number of
keys and bytes: an event, a state part and its header, the stream's version, the command's record, the outbox's entry.
At least 0.70 of the bare rate.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deploy.stack import running
from deploy.stack.etcd import Etcd
from distroml.events import Context, NewEvent
from distroml.eventstore import Append, CommandRecord, Commit, Part
from distroml.eventstore.etcd import Archive, EtcdEventStore, Keys, open_event_store
from distroml.eventstore.etcd.transaction import Transaction
from distroml.eventstore.relay.memory import MemoryLog
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore.memory import open_object_store
from distroml.statestore.etcd import EtcdClient, EtcdSettings, open_state_store
from distroml.statestore.etcd.messages import TxnRequest

CALLERS = (1, 16, 64)
TARGET = 0.70
DEPLOYMENT = "bench"
CONTEXT = Context(
    deployment=DEPLOYMENT, project="p", actor="bench", causation_id="c", correlation_id="c", time_ms=1_700_000_000_000
)
fresh = itertools.count()


def commit_of(stream: str, version: int) -> Commit:
    """What a service's command writes."""
    event = NewEvent(id=f"{stream}-{version}", type="bench.Progressed", schema=1, public=False, data=b"x" * 60)
    return Commit(
        context=CONTEXT,
        appends=(Append(stream, version, (event,)),),
        parts=(Part(f"state/{stream}:state", b"x" * 200), Part(f"state/{stream}:@", b'{"version":%d}' % version)),
        command=CommandRecord(f"{stream}-{version}", b"h" * 32, b"answer"),
    )


async def rate(callers: int, seconds: float, work: Callable[[str], Callable[[int], Awaitable[object]]]) -> float:
    """Calls per second of concurrent callers, each on a stream of its own."""
    calls = [work(f"bench/job/{next(fresh):06}") for _ in range(callers)]
    done = 0
    end = time.perf_counter() + seconds

    async def call(one: Callable[[int], Awaitable[object]]) -> None:
        nonlocal done
        version = 0
        while time.perf_counter() < end:
            await one(version)
            version += 1
            done += 1

    begun = time.perf_counter()
    await asyncio.gather(*map(call, calls))
    return done / (time.perf_counter() - begun)


async def compare(client: EtcdClient, store: EtcdEventStore, callers: int, pairs: int, seconds: float) -> float:
    """Print the ratios of the pairs and their median; return it."""
    lease = await client.grant(3600)

    def committed(stream: str) -> Callable[[int], Awaitable[object]]:
        return lambda version: store.commit(commit_of(stream, version))

    def bare(stream: str) -> Callable[[int], Awaitable[object]]:
        # Made beforehand, as many as a caller can send in that time.
        requests: list[TxnRequest] = [
            Transaction(Keys(DEPLOYMENT), DEPLOYMENT, commit_of(stream, n), f"{stream}-{n:020}", lease).request()
            for n in range(int(6000 * seconds / callers) + 1)
        ]
        return lambda version: client.txn(requests[version])

    ratios: list[float] = []
    rates: list[float] = []
    for number in range(pairs):
        order = (committed, bare) if number % 2 == 0 else (bare, committed)
        found = {work: await rate(callers, seconds, work) for work in order}
        ratios.append(found[committed] / found[bare])
        rates.append(found[committed])
        await store.outbox.trim(up_to=1 << 60)
    median = statistics.median(ratios)
    print(
        f"{callers:>3} callers: {statistics.median(rates):7.0f} commits/s, {median:.2f} of bare"
        f" (pairs {', '.join(f'{one:.2f}' for one in sorted(ratios))}; at least {TARGET:.2f})",
        flush=True,
    )
    return median


async def main(folder: Path, pairs: int, seconds: float) -> None:
    """Every number of callers."""
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {folder}")
    with running(Etcd(), folder / "etcd") as server:
        state = open_state_store(EtcdSettings(endpoints=(f"http://127.0.0.1:{server.port}",)), DEPLOYMENT)
        objects = open_object_store()
        segments, archive = SegmentLog(objects, DEPLOYMENT), Archive(objects, DEPLOYMENT)
        store = open_event_store(state, MemoryLog(), segments, archive)
        for callers in CALLERS:
            await compare(state.client, store, callers, pairs, seconds)
        await store.close()
        await state.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="half a second for each block, two pairs")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        short = (2, 0.5) if arguments.quick else (arguments.pairs, arguments.seconds)
        asyncio.run(main(Path(scratch), *short))
