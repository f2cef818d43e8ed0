"""History made anew from the log: at least 60% of the rate at which a bare client reads the same log in the same run.

    python benchmarks/rebuild.py [--quick] [--events 1000000] [--log sqlite jetstream] [--history sqlite postgres]

The log is filled with jobs as they are: submitted, started, trained with a checkpoint every few events, lost a worker
and recovered, ended. `bare client` reads the log and looks at nothing: every page of a SQLite log; every message of a
JetStream log, by the client library's own consumer. `rebuild` is what `distroml history rebuild` does: views, events,
plans, slot time, versions and the cursor, and the swap at the end. A JetStream log is filled as the relay does it, into
a real nats-server; etcd is there too, and empty. A PostgreSQL is started, with fsync on, where DISTROML_POSTGRES names
none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from deploy.stack.registry import server
from deploy.stack.running import running
from distroml.api.checkpoint.v1 import checkpoint_pb2 as c
from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.rendezvous.v1 import rendezvous_pb2 as r
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.scheduler.v1.jobs_pb2 import JobSpec, Placement, WorkerRange
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.events import Context, NewEvent, Position, fresh_id
from distroml.eventstore import Append, Commit, EventStore
from distroml.eventstore.jetstream import JetStreamLog
from distroml.eventstore.log import recorded
from distroml.eventstore.relay.core import BEGINNING
from distroml.eventstore.sqlite import open_event_store
from distroml.rpc import ServiceSettings, open_stores
from distroml.telemetry.history.port import History
from distroml.telemetry.history.postgres import PostgresHistory
from distroml.telemetry.history.rebuild import PAGE, rebuild
from distroml.telemetry.history.sqlite import SqliteHistory
from distroml.telemetry.projecting import pages

LIMIT = 0.6
WORKERS = 4
SAVES = 20
JOBS, TOLD = 8, 8
MAX_EVENTS = 5000
PULL = 5000
CONTEXT = Context(
    deployment="bench", project="default", actor="ann", causation_id="c", correlation_id="c", time_ms=1_700_000_000_000
)


def story(job: str, at_ms: int) -> Iterator[tuple[str, str, Message]]:
    """A job's events in their order: stream, stored name, body."""
    scheduler, rendezvous, checkpoint = (f"{name}/job/{job}" for name in ("scheduler", "rendezvous", "checkpoint"))
    workers = [f"{job}.1.node-a.{rank}" for rank in range(WORKERS)]
    spec = JobSpec(name="gpt", project="default", command=["train.py"], workers=WorkerRange(min=2, max=WORKERS))
    place = [Placement(node="node-a", slots=[f"cpu-{i}" for i in range(WORKERS)])]
    yield scheduler, "scheduler.job.Submitted", s.JobSubmitted(job=job, spec=spec, at_ms=at_ms)
    yield scheduler, "scheduler.job.Queued", s.JobQueued(at_ms=at_ms, reason="WaitingForSlots")
    yield scheduler, "scheduler.job.AttemptStarted", s.JobAttemptStarted(at_ms=at_ms, attempt=1, placement=place)
    for number in (1, 2):
        opened = r.GenerationOpened(at_ms=at_ms, job=job, number=number, attempt=1)
        yield rendezvous, "rendezvous.generation.GenerationOpened", opened
        for rank, worker in enumerate(workers):
            began = r.WorkerStarted(at_ms=at_ms, worker=worker, generation=number, rank=rank, pid=9, node="node-a")
            yield rendezvous, "rendezvous.worker.Started", began
        members = [r.Member(worker=w, node="node-a", rank=i, local_rank=i) for i, w in enumerate(workers)]
        formed = r.Generation(job=job, number=number, world_size=WORKERS, members=members, at_ms=at_ms, attempt=1)
        yield rendezvous, "rendezvous.generation.GenerationFormed", r.GenerationFormed(generation=formed)
        if number == 1:
            yield scheduler, "scheduler.job.Started", s.JobStarted(at_ms=at_ms, attempt=1, generation=1)
        for save in range(SAVES):
            step, id_ = (number * SAVES + save) * 100, f"save-{number}-{save}"
            at = at_ms + step
            begun = c.Begun(at_ms=at, job=job, save_id=id_, step=step, generation=number, world_size=WORKERS)
            yield checkpoint, "checkpoint.Begun", begun
            done = c.Committed(
                at_ms=at, save_id=id_, step=step, generation=number, manifest_hash=f"{step:064x}", shards=WORKERS,
                bytes_total=60_000_000, bytes_written=20_000_000, save_s=0.3,
            )  # fmt: skip
            yield checkpoint, "checkpoint.Committed", done
            yield scheduler, "scheduler.job.Progressed", s.JobProgressed(at_ms=at, step=step, total_steps=10_000)
        if number == 1:
            signal = FailureCategory.FAILURE_CATEGORY_SIGNAL
            died = r.WorkerExited(at_ms=at_ms, worker=workers[1], generation=1, rank=1, signal=9, category=signal)
            yield rendezvous, "rendezvous.worker.Exited", died
            broken = r.GenerationBroken(at_ms=at_ms, number=1, cause="WorkerExited", worker=workers[1], category=signal)
            yield rendezvous, "rendezvous.generation.GenerationBroken", broken
    yield scheduler, "scheduler.job.Succeeded", s.JobSucceeded(at_ms=at_ms + 3_600_000)


def commits(events: int) -> Iterator[Commit]:
    """At least so many events; several jobs run at a time, as they do."""
    written = number = 0
    while written < events:
        jobs = [story(f"job-{number + i}", CONTEXT.time_ms + number * 1000) for i in range(JOBS)]
        number += JOBS
        versions: dict[str, int] = {}
        # Jobs have as many events each, and end together.
        while told := [event for job in jobs for event in itertools.islice(job, TOLD)]:
            batches: dict[str, list[NewEvent]] = {}
            for stream, name, body in told:
                event = NewEvent(id=fresh_id("ev"), type=name, schema=1, public=True, data=body.SerializeToString())
                batches.setdefault(stream, []).append(event)
            appends = tuple(Append(one, versions.get(one, 0), tuple(new)) for one, new in batches.items())
            yield Commit(context=CONTEXT, appends=appends)
            for stream, new in batches.items():
                versions[stream] = versions.get(stream, 0) + len(new)
            written += len(told)


@dataclass(frozen=True, slots=True)
class Log:
    """A filled log: how many events it has, and what reads them without looking."""

    store: EventStore
    events: int
    read: Callable[[], Awaitable[int]]


@contextlib.asynccontextmanager
async def sqlite_log(folder: Path, events: int) -> AsyncGenerator[Log]:
    store = open_event_store(folder / "control.sqlite", deployment="bench")
    count = 0
    for commit in commits(events):
        count += len((await store.commit(commit)).events)

    async def read() -> int:
        return sum([len(page) async for page in pages(store, None, limit=PAGE)])

    try:
        yield Log(store, count, read)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def jetstream_log(folder: Path, events: int) -> AsyncGenerator[Log]:
    with running(server("etcd"), folder / "etcd") as etcd, running(server("nats"), folder / "nats") as nats:
        environ = {**etcd.server.settings(etcd.ports), **nats.server.settings(nats.ports)}
        environ |= {"DISTROML_DATA": str(folder / "data")}
        DataFolder(folder / "data").prepare(Profile.STACK)
        settings = ServiceSettings.read(environ, "telemetry")
        async with open_stores(settings) as stores:
            assert stores.servers is not None
            while await stores.servers.looks["nats"]():
                await asyncio.sleep(0.1)
            log = JetStreamLog(stores.servers.connection, settings.deployment, keep_bytes=8 << 30)
            count = await publish(log, events)

            async def read() -> int:
                return await consume(log, count)

            yield Log(stores.events, count, read)


async def publish(log: JetStreamLog, events: int) -> int:
    """Fill a log as the relay does; returns with how many."""
    tail, previous, count = await log.tail(), BEGINNING, 0
    for revision, commit in enumerate(commits(events), start=1):
        told = [
            (append.stream, version, event)
            for append in commit.appends
            for version, event in enumerate(append.events, start=append.expected + 1)
        ]
        recordeds = [
            recorded(event, stream, version, Position(log.log_id, revision, index), commit.context)
            for index, (stream, version, event) in enumerate(told)
        ]
        tail = await log.publish(tail, previous, recordeds)
        assert tail.place is not None
        previous, count = tail.place, count + len(recordeds)
    return count


async def consume(log: JetStreamLog, count: int) -> int:
    """Read every message by the client's pull consumer."""
    config = ConsumerConfig(ack_policy=AckPolicy.NONE)
    consumer = await JetStreamContext(log.connection.client).pull_subscribe("", stream=log.name, config=config)
    read = 0
    while read < count:
        read += len(await consumer.fetch(min(PULL, count - read)))
    await consumer.unsubscribe()
    return read


LOGS: dict[str, Callable[[Path, int], AbstractAsyncContextManager[Log]]] = {
    "sqlite": sqlite_log,
    "jetstream": jetstream_log,
}


@contextlib.contextmanager
def history_in(kind: str, folder: Path) -> Generator[History]:
    if kind == "sqlite":
        yield SqliteHistory(folder / "history.sqlite", max_events=MAX_EVENTS)
    elif address := os.environ.get("DISTROML_POSTGRES"):
        yield PostgresHistory(address, max_events=MAX_EVENTS, schema="distroml_bench")
    else:
        with running(server("postgres"), folder / "postgres") as begun:
            address = begun.server.settings(begun.ports)["DISTROML_POSTGRES"]
            yield PostgresHistory(address, max_events=MAX_EVENTS)


async def bare(log: Log) -> tuple[float, float]:
    """Seconds that a reader which looks at nothing takes, and its CPU's."""
    began, used_s = time.perf_counter(), cpu_s()
    assert await log.read() == log.events
    return time.perf_counter() - began, cpu_s() - used_s


async def measure(options: argparse.Namespace, kind: str, folder: Path) -> bool:
    fit = True
    async with LOGS[kind](folder, options.events) as log:
        print(f"{log.events:,} events in a log of {kind}", flush=True)
        for place in options.history:
            with history_in(place, folder) as history:
                async with history:
                    before = await bare(log)
                    began, used_s = time.perf_counter(), cpu_s()
                    told = [progress async for progress in rebuild(history, log.store)]
                    took_s, used_s = time.perf_counter() - began, cpu_s() - used_s
                    after = await bare(log)
                    kept = await history.counts()
            assert told[-1].done
            assert told[-1].events == log.events
            bare_s, bare_cpu_s = ((x + y) / 2 for x, y in zip(before, after, strict=True))
            ratio = bare_s / took_s
            fit = fit and ratio >= LIMIT
            print(
                f"history in {place:<9} bare client {log.events / bare_s:>9,.0f} events/s, CPU"
                f" {bare_cpu_s / log.events * 1e6:.1f} µs each   rebuild {log.events / took_s:>9,.0f} events/s, CPU"
                f" {used_s / log.events * 1e6:.1f} µs each (two processes)   {ratio:.0%} of its rate, wanted"
                f" {LIMIT:.0%}   {sum(kept.values()):,} jobs",
                flush=True,
            )
    return fit


def cpu_s() -> float:
    """User and system seconds of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 events")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--log", nargs="+", choices=LOGS, default=list(LOGS))
    parser.add_argument("--history", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    options = parser.parse_args()
    options.events = 20_000 if options.quick else options.events
    fit = True
    for kind in options.log:
        with tempfile.TemporaryDirectory() as folder:
            fit = asyncio.run(measure(options, kind, Path(folder))) and fit
    return 0 if fit or options.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
