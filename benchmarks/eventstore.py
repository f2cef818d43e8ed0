"""How fast the SQLite event store is on this disk, against its targets.

Run: python benchmarks/eventstore.py [--seconds 5] [--folder DIR]   (the folder should be on the disk in question)

Every line prints the figure and its ratio to the target; times include everything up to the caller's await.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path

from distroml.events import Codec, Context, Decider, NewEvent
from distroml.eventstore import Append, CommandRecord, Commit, Part
from distroml.eventstore.codec import DataclassCodec
from distroml.eventstore.sqlite import SqliteEventStore, open_event_store

CONTEXT = Context(
    deployment="bench", project="p", actor="bench", causation_id="c", correlation_id="c", time_ms=1_700_000_000_000
)


@dataclass(frozen=True, slots=True)
class Progressed:
    step: int
    loss: float
    worker: str


@dataclass(frozen=True, slots=True)
class Job:
    step: int = 0
    loss: float = 0.0
    reports: int = 0


def evolve(job: Job, event: Progressed) -> Job:
    return replace(job, step=event.step, loss=event.loss, reports=job.reports + 1)


DECIDER: Decider[Job, Progressed, Progressed] = Decider(Job(), lambda job, command: (command,), evolve)
CODEC: DataclassCodec[Progressed] = DataclassCodec({"bench.Progressed": (Progressed, 1)})


class ProtobufCodec:
    """The same event as a protobuf message, whose class is made here from its description."""

    def __init__(self) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
        message = file.message_type.add(name="Progressed")
        kinds = descriptor_pb2.FieldDescriptorProto
        fields = (("step", kinds.TYPE_INT64), ("loss", kinds.TYPE_DOUBLE), ("worker", kinds.TYPE_STRING))
        for number, (name, kind) in enumerate(fields, start=1):
            message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._message = message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Progressed"))

    def encode(self, event: Progressed, *, id: str) -> NewEvent:
        data = self._message(step=event.step, loss=event.loss, worker=event.worker).SerializeToString()
        return NewEvent(id=id, type="bench.Progressed", schema=1, public=True, data=data)

    def decode(self, type_: str, schema: int, data: bytes) -> Progressed:
        message = self._message.FromString(data)
        return Progressed(message.step, message.loss, message.worker)


def commit_of(stream: str, version: int) -> Commit:
    """What a service's command writes: an event, a state part and its header, the command's record."""
    event = CODEC.encode(Progressed(version, 1.0 / (version + 1), "worker-3"), id=f"{stream}-{version}")
    return Commit(
        context=CONTEXT,
        appends=(Append(stream, version, (event,)),),
        parts=(Part(f"state/{stream}:state", b"x" * 200), Part(f"state/{stream}:@", b'{"version":%d}' % version)),
        command=CommandRecord(f"{stream}-{version}", b"h" * 32, b"answer"),
    )


async def commits(store: SqliteEventStore, callers: int, seconds: float) -> tuple[float, list[float]]:
    """Commits per second of concurrent callers, each on its own stream, and the latencies in ms."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def call(n: int) -> None:
        version = 0
        while (begun := time.perf_counter()) < end:
            await store.commit(commit_of(f"bench/job/{callers}-{n}", version))
            version += 1
            latencies.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    await asyncio.gather(*(call(n) for n in range(callers)))
    return len(latencies) / (time.perf_counter() - begun), latencies


def paced(path: Path, rate: int, seconds: float, name: str, results: Queue[list[float]]) -> None:
    """One process that commits at a steady rate; latency counts from when the commit was due."""

    async def run() -> list[float]:
        store = open_event_store(path)
        latencies: list[float] = []

        async def call(n: int, due: float) -> None:
            await store.commit(commit_of(f"bench/{name}/{n}", 0))
            latencies.append((time.perf_counter() - due) * 1000)

        begun = time.perf_counter() + 0.5
        async with asyncio.TaskGroup() as group:
            for n in range(int(rate * seconds)):
                due = begun + n / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(call(n, due))
        await store.close()
        return latencies

    results.put(asyncio.run(run()))


async def fold(store: SqliteEventStore, codec: Codec[Progressed], wanted: int, below: str) -> float:
    """Events per second read from the log in batches, decoded and folded."""
    states: dict[str, Job] = {}
    position, count, begun = None, 0, time.perf_counter()
    while count < wanted and (batch := await store.read(after=position, streams=(below,), limit=1000)):
        for recorded in batch:
            event = codec.decode(recorded.type, recorded.schema, recorded.data)
            states[recorded.stream] = evolve(states.get(recorded.stream, DECIDER.initial), event)
        count, position = count + len(batch), batch[-1].position
    return count / (time.perf_counter() - begun)


async def fill(store: SqliteEventStore, codec: Codec[Progressed], count: int, below: str) -> None:
    """Events to read, in commits of ten."""

    async def stream(n: int) -> None:
        for version in range(0, count // 20, 10):
            events = tuple(
                codec.encode(Progressed(v, 1.0 / (v + 1), "worker-3"), id=f"r-{n}-{v}")
                for v in range(version, version + 10)
            )
            await store.commit(Commit(context=CONTEXT, appends=(Append(f"{below}{n}", version, events),)))

    await asyncio.gather(*(stream(n) for n in range(20)))


async def delivery(path: Path) -> list[float]:
    """Milliseconds from a commit in one database object to its arrival in another one's subscription."""
    from distroml.eventstore.sqlite import event_store
    from distroml.statestore.sqlite import SqliteDatabase

    writer, reader = open_event_store(path), event_store(SqliteDatabase(path))
    subscription = reader.subscribe("bench", streams=("bench/delivery",), start=await reader.head())
    latencies: list[float] = []
    sent = [0.0]

    async def receive() -> None:
        async for _ in subscription:
            latencies.append((time.perf_counter() - sent[0]) * 1000)
            if len(latencies) == 50:
                return

    receiving = asyncio.create_task(receive())
    for version in range(50):
        await asyncio.sleep(0.037)
        await writer.commit(commit_of("bench/delivery", version))
        sent[0] = time.perf_counter()
    await receiving
    await reader.close()
    await writer.close()
    return latencies


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def show(what: str, value: float, target: float, unit: str, detail: str = "", *, at_most: bool = False) -> None:
    ratio = target / value if at_most else value / target
    sign = "<=" if at_most else ">="
    print(f"{what:<52}{value:>10.1f} {unit:<10} target {sign} {target:<7g} ratio {ratio:5.2f}  {detail}", flush=True)


def spread(latencies: list[float]) -> str:
    return f"p50 {statistics.median(latencies):.1f} ms, p99 {percentile(latencies, 0.99):.1f} ms"


async def main(folder: Path, seconds: float) -> None:
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {folder}")
    path = folder / "bench.db"
    store = open_event_store(path, deployment="bench")
    for callers in (1, 16):
        rate, latencies = await commits(store, callers, seconds)
        show(f"commits, {callers} callers, one process", rate, 2000 if callers == 16 else 200, "/s", spread(latencies))
    for kind, codec in (("JSON dataclasses", CODEC), ("protobuf", ProtobufCodec())):
        below = f"bench/{kind.partition(' ')[0]}/"
        await fill(store, codec, 100_000, below)
        rates = [await fold(store, codec, 100_000, below) for _ in range(3)]
        middle = statistics.median(rates)
        show(f"events read and folded ({kind})", middle, 50_000, "/s", f"of {sorted(round(r) for r in rates)}")
    await store.close()

    results: Queue[list[float]] = multiprocessing.get_context("spawn").Queue()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=paced, args=(path, 100, seconds, f"p{n}", results)) for n in range(5)]
    for worker in workers:
        worker.start()
    found = [latency for _ in workers for latency in await asyncio.to_thread(results.get)]
    for worker in workers:
        worker.join()
    worst = percentile(found, 0.99)
    show("commit p99, 5 processes at 100 commits/s", worst, 100, "ms", f"{len(found)}, {spread(found)}", at_most=True)

    latencies = await delivery(path)
    show("subscription across databases, p99", percentile(latencies, 0.99), 50, "ms", spread(latencies), at_most=True)
    store = open_event_store(path)
    before = resource.getrusage(resource.RUSAGE_SELF)
    waiting = asyncio.create_task(store.subscribe("idle", start=await store.head()).__aiter__().__anext__())
    await asyncio.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    waiting.cancel()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    show("CPU of an idle subscriber", 100 * used / seconds, 1, "%", at_most=True)
    await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--quick", action="store_const", const=1.0, dest="seconds", help="one second for each figure")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        asyncio.run(main(Path(scratch), arguments.seconds))
