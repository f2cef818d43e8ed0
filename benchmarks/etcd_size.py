"""How large etcd is with 2,000 to 10,000 finished jobs that stay in it, and where they are retired.

Run: python benchmarks/etcd_size.py [--jobs 10000] [--callers 64]   (installs and starts etcd, which syncs to its disk)

A job leaves what a real one was counted to leave: the streams of scheduler, rendezvous and checkpoint with their parts
and its fence, 15 keys and 4.5 kB; the records of its commands, which end after a day, are left out. Each stream is
committed twice. Printed are keys and bytes that live, and what etcd's database has in use: at once, with the history of
the jobs since the count before, which `deploy/stack` has etcd keep for an hour, and when compaction has passed over it.

With jobs retired, keys and live bytes at the last count are to be those of the first, and the database in use after
compaction at most twice as large.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deploy.stack import running
from deploy.stack.etcd import Etcd
from distroml.events import Context, NewEvent
from distroml.eventstore import Append, Commit, Part
from distroml.eventstore.etcd import Archive, EtcdEventStore, open_event_store
from distroml.eventstore.port import state_prefix
from distroml.eventstore.relay.memory import MemoryLog
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore.filesystem import open_object_store
from distroml.statestore.etcd import EtcdClient, EtcdSettings, open_state_store

STEPS = 5
DEPLOYMENT = "bench"
PARTS = {
    "scheduler/job/": {"@": 100, "state": 1000},
    "rendezvous/job/": {
        "@": 100,
        "core": 300,
        "nodes": 400,
        "ready": 10,
        "took_part": 60,
        "marks": 100,
        "formed": 700,
    },
    "checkpoint/job/": {"@": 100, "catalogue": 900},
}
"""For each stream of a job, the bytes of its parts."""
CONTEXT = Context(
    deployment=DEPLOYMENT, project="p", actor="bench", causation_id="c", correlation_id="c", time_ms=1_700_000_000_000
)


@dataclass(frozen=True, slots=True)
class Size:
    """Of etcd: live keys and bytes, and bytes of the database in use with recent history and after compaction."""

    keys: int
    live: int
    recent: int
    compacted: int


async def spread(callers: int, work: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    """`work` on all numbers, so many at a time."""
    left = iter(numbers)

    async def call() -> None:
        for number in left:
            await work(number)

    await asyncio.gather(*(call() for _ in range(callers)))


async def live_and_end(store: EtcdEventStore, number: int) -> None:
    """All commits of one job."""
    for version, (kind, sizes) in itertools.product(range(2), PARTS.items()):
        stream = f"{kind}job-{number:024}"
        event = NewEvent(id=f"{stream}-{version}", type="bench.Progressed", schema=1, public=False, data=b"x" * 200)
        parts = [Part(state_prefix(stream) + name, b"%d" % version * size) for name, size in sizes.items()]
        if kind.startswith("rendezvous"):
            parts.append(Part(f"fences/job-{number:024}", b"%d" % version))
        await store.commit(Commit(context=CONTEXT, appends=(Append(stream, version, (event,)),), parts=tuple(parts)))


async def retire(store: EtcdEventStore, number: int) -> None:
    """What the services do when a job has been over for a day."""
    for kind in PARTS:
        keys = (f"fences/job-{number:024}",) if kind.startswith("rendezvous") else ()
        await store.retire(f"{kind}job-{number:024}", version=2, keys=keys)


async def relay(store: EtcdEventStore, segments: SegmentLog) -> None:
    """Bring the outbox into segments and trim it, as the relay does."""
    end = await segments.sealed()
    while entries := await store.outbox.pending(after=end, limit=1000):
        end = await segments.seal(end, entries)
    await store.outbox.trim(up_to=end)


async def measured(client: EtcdClient, port: int) -> Size:
    """The size now, and then with all history compacted."""
    recent = in_use(port)
    found, revision = await client.range_all(f"{DEPLOYMENT}/".encode())
    await client.compact(revision)
    return Size(len(found), sum(len(kv.key) + len(kv.value) for kv in found), recent, in_use(port))


def in_use(port: int) -> int:
    """Bytes that etcd says its database uses; pages that are free in its file are not among them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("etcd_mvcc_db_total_size_in_use_in_bytes "):
                return int(float(line.split()[1]))
    raise SystemExit("etcd tells no etcd_mvcc_db_total_size_in_use_in_bytes; see its /metrics")


async def grow(folder: Path, jobs: int, callers: int, *, retiring: bool) -> list[Size]:
    """Sizes at each fifth of the jobs, printed as they come."""
    print(f"\njobs {'are retired' if retiring else 'stay'}:  keys, live, in use with history, after compaction")
    found: list[Size] = []
    with running(Etcd(), folder / "etcd") as server:
        # Compacting the history of many commits at once takes etcd its time.
        settings = EtcdSettings(endpoints=(f"http://127.0.0.1:{server.port}",), timeout_s=120.0)
        state = open_state_store(settings, DEPLOYMENT)
        objects = open_object_store(folder / "objects")
        segments = SegmentLog(objects, DEPLOYMENT)
        store = open_event_store(state, MemoryLog(), segments, Archive(objects, DEPLOYMENT))
        for step in range(STEPS):
            numbers = range(jobs * step // STEPS, jobs * (step + 1) // STEPS)
            begun = time.perf_counter()
            await spread(callers, lambda number: live_and_end(store, number), numbers)
            await relay(store, segments)
            committed = time.perf_counter()
            if retiring:
                await spread(callers, lambda number: retire(store, number), numbers)
            ended = time.perf_counter()
            size = await measured(state.client, server.port)
            found.append(size)
            rates = f"{len(numbers) * 6 / (committed - begun):.0f} commits/s"
            if retiring:
                rates += f", {len(numbers) * 3 / (ended - committed):.0f} retired/s"
            print(
                f"{numbers.stop:>7} {size.keys:>8} {size.live / 1e6:9.4f} MB {size.recent / 1e6:8.2f} MB"
                f" {size.compacted / 1e6:8.2f} MB   {rates}",
                flush=True,
            )
        await store.close()
        await state.close()
    return found


def judge(sizes: list[Size]) -> str:
    """Whether etcd stayed as small as it was."""
    first, last = sizes[0], sizes[-1]
    same = last.keys <= first.keys and last.live <= first.live * 1.01
    bounded = last.compacted <= 2 * first.compacted
    return f"retired: keys and live bytes {'stay' if same else 'GROW'}, the database {'stays' if bounded else 'GROWS'}"


async def main(folder: Path, jobs: int, callers: int) -> int:
    """Both ways."""
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {folder}, {callers} callers")
    await grow(folder / "stay", jobs, callers, retiring=False)
    verdict = judge(await grow(folder / "retired", jobs, callers, retiring=True))
    print(f"\n{verdict}")
    return int("GROW" in verdict)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="100 jobs")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        jobs = 100 if arguments.quick else arguments.jobs
        sys.exit(asyncio.run(main(Path(scratch), jobs, arguments.callers)))
