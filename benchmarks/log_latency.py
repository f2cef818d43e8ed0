"""From a commit in etcd to a projection in another process, through the relay and JetStream, at 300 commits a second.

Run: python benchmarks/log_latency.py [--seconds 20] [--rate 300]   (installs and starts etcd and nats-server)

Three processes besides the servers' own: who commits, the relay, and a reader that has a consumer on JetStream, which
gives it each message once that is stored, and that follows a durable subscription as a projection does. The latter is
told by the outbox where that is faster than the log. Times are from the call of `commit` to its return, to the event
out of JetStream, and to the event in the projection, by the machine's one monotonic clock. The 99th percentile of each
of the two ways is to be at most 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from deploy.stack import running
from deploy.stack.etcd import Etcd
from deploy.stack.nats import Nats
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.events import Context, NewEvent
from distroml.eventstore import Append, Commit, EventStore
from distroml.eventstore.jetstream import subjects
from distroml.eventstore.wire import decode_event
from distroml.rpc import ServiceSettings, open_stores

TARGET_MS = 50.0
STREAMS = 64
CONTEXT = Context(
    deployment="bench", project="p", actor="bench", causation_id="c", correlation_id="c", time_ms=1_700_000_000_000
)
READY = "ready"


async def write(store: EventStore, rate: float, count: int) -> list[float]:
    """Commit at a fixed rate, whoever is still under way; how long each took, milliseconds."""
    taken: list[float] = []
    locks = [asyncio.Lock() for _ in range(STREAMS)]

    async def commit(number: int) -> None:
        stream = number % STREAMS
        async with locks[stream]:
            called_ns = time.monotonic_ns()
            event = NewEvent(id=f"e{number}", type="bench.Told", schema=1, public=True, data=b"%d" % called_ns)
            append = Append(f"bench/job/{stream}", number // STREAMS, (event,))
            await store.commit(Commit(context=CONTEXT, appends=(append,)))
            taken.append((time.monotonic_ns() - called_ns) / 1e6)

    begun = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            tasks.create_task(commit(number))
    return taken


async def read(count: int) -> None:
    """The reader's process: prints `READY`, then two lists of milliseconds, and stays until it is ended."""
    settings = ServiceSettings.read(os.environ, "telemetry")
    streamed: list[float] = []

    async def message(got: Msg) -> None:
        now_ns = time.monotonic_ns()
        streamed.append((now_ns - int(decode_event(settings.deployment, got.data).data)) / 1e6)

    async with open_stores(settings) as stores:
        assert stores.servers is not None
        while await stores.servers.looks["nats"]():
            await asyncio.sleep(0.1)
        while await stores.servers.log.info() is None:
            await asyncio.sleep(0.1)
        every = f"{subjects.root(settings.deployment, '*')}.>"
        stream = subjects.stream_name(settings.deployment)
        consumers = JetStreamContext(stores.servers.connection.client)
        await consumers.subscribe(every, stream=stream, ordered_consumer=True, cb=message)
        subscription = stores.events.subscribe("bench.projection", streams=("bench/",))
        print(READY, flush=True)
        projected: list[float] = []
        async for recorded in subscription:
            projected.append((time.monotonic_ns() - int(recorded.data)) / 1e6)
            if len(projected) % 100 == 0 or len(projected) == count:
                await subscription.ack(recorded)
            if len(projected) == count:
                break
        while len(streamed) < count:
            await asyncio.sleep(0.01)
        print(json.dumps([streamed, projected]), flush=True)
        await asyncio.sleep(60)


def process_time(pid: int) -> float:
    """User and system seconds of a process so far, its start among them."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


def shown(name: str, values: Sequence[float]) -> float:
    """Print percentiles; the 99th."""
    cuts = statistics.quantiles(values, n=100)
    print(f"{name:<12} p50 {cuts[49]:6.1f}  p90 {cuts[89]:6.1f}  p99 {cuts[98]:6.1f}  most {max(values):6.1f} ms")
    return cuts[98]


async def measure(environ: Mapping[str, str], servers: Mapping[str, int], rate: float, count: int) -> bool:
    """Whether the target was met; `servers` are their processes by name."""
    settings = ServiceSettings.read(environ, "scheduler")
    relay = subprocess.Popen([sys.executable, "-m", "distroml.relay"], env=environ, stderr=subprocess.DEVNULL)
    reader = subprocess.Popen(
        [sys.executable, __file__, "--reader", str(count)], env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        if (await asyncio.to_thread(reader.stdout.readline)).strip() != READY:
            raise SystemExit("the reader did not start")
        async with open_stores(settings) as stores:
            committed = await write(stores.events, rate, count)
        streamed, projected = json.loads(await asyncio.to_thread(reader.stdout.readline))
        processes = {"writer": os.getpid(), "relay": relay.pid, "reader": reader.pid, **servers}
        times = {name: process_time(pid) for name, pid in processes.items()}
        print("CPU seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in times.items()))
    finally:
        for process in (relay, reader):
            process.terminate()
            process.wait(20)
    shown("committed", committed)
    slowest = max(shown("JetStream", streamed), shown("projected", projected))
    return slowest <= TARGET_MS


def main(folder: Path, rate: float, seconds: float) -> int:
    """Begin the servers, measure, say whether it is enough."""
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {folder}: {rate:g} commits/s for {seconds:g} s")
    with running(Etcd(), folder / "etcd") as etcd, running(Nats(), folder / "nats") as nats:
        data = DataFolder(folder / "data")
        data.prepare(Profile.STACK)
        environ = {**os.environ, **etcd.server.settings(etcd.ports), **nats.server.settings(nats.ports)}
        environ |= {"DISTROML_DATA": str(data.path)}
        environ.pop("DISTROML_OBJECTS", None)
        servers = {"etcd": etcd.pid, "nats": nats.pid}
        met = asyncio.run(measure(environ, servers, rate, int(rate * seconds)))
    print(f"p99 out of JetStream and in the projection at most {TARGET_MS:g} ms: {'yes' if met else 'NO'}")
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--quick", action="store_true", help="three seconds; the target does not count")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--reader", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        asyncio.run(read(arguments.reader))
        raise SystemExit(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        code = main(Path(scratch), arguments.rate, 3.0 if arguments.quick else arguments.seconds)
    raise SystemExit(0 if arguments.quick else code)
