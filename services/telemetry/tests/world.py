"""Telemetry with its dashboard in one process, over a memory event store; fed through Push and the event log."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from worldlog import DEPLOYMENT, EventLog, lines, loss_at, now_ms, steps

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub, add_TelemetryServiceServicer_to_server
from distroml.eventstore import EventStore
from distroml.eventstore.memory import open_event_store
from distroml.rpc import Service, ServiceSettings, connect
from distroml.statestore.memory import MemoryDatabase
from distroml.telemetry.adapters.scheduler import Queue
from distroml.telemetry.dashboard.port import take
from distroml.telemetry.dashboard.server import Dashboard
from distroml.telemetry.domain.usage import Price
from distroml.telemetry.history.port import History, HistoryAway
from distroml.telemetry.history.sqlite import SqliteHistory
from distroml.telemetry.live import Changes
from distroml.telemetry.meter import Meter
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.past import Past
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.rolling import Roller
from distroml.telemetry.server import FULL_NAME, TelemetryServicer
from distroml.telemetry.settings import Limits

PRICE = Price.parse("2.40 EUR")
TOKEN = "a-token-for-tests"
JAEGER_UI, GRAFANA_URL = "http://jaeger.test:16686", "http://grafana.test:3000/"
R = TypeVar("R")


async def until(condition: Callable[[], Coroutine[Any, Any, R]], what: str, within_s: float = 10) -> R:
    """Ask until the answer is true."""
    end = time.monotonic() + within_s
    while not (answer := await condition()):
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)
    return answer


class World:
    """Everything of one telemetry process, for tests."""

    def __init__(
        self, data: Path, limits: Limits, store: EventStore | None = None, history: History | None = None
    ) -> None:
        self.history = history
        self.data, self.limits = data, limits
        self.store = store or open_event_store(MemoryDatabase(DEPLOYMENT))
        self.log = EventLog(self.store)
        self.registry = CollectorRegistry()
        self._sequence = 0

    @contextlib.asynccontextmanager
    async def running(self, *, dashboard: bool = False) -> AsyncGenerator[World]:
        settings = ServiceSettings(service="telemetry", data=self.data, token=TOKEN, deployment=DEPLOYMENT)
        path = self.data / "telemetry.sqlite"
        history = self.history or SqliteHistory(self.data / "history.sqlite", max_events=self.limits.events)
        async with Service(settings) as service, ReadModel(path, self.limits, Changes(), history) as self.model:
            self.metrics = TrainingMetrics(
                max_jobs=self.limits.labelled_jobs, ttl_s=3600, clock_s=time.monotonic, registry=self.registry
            )
            meter = Meter(self.model, self.metrics)
            self.projector = Projector(
                self.store,
                self.model,
                on_fact=meter.take,
                on_skip=self.metrics.skipped_events.inc,
                on_history=lambda why: service.report("history", why),
                lead_s=2,
            )
            self.queue = Queue(None, self.model.changes)
            self.queue.away = ""
            self.roller = Roller(self.model, self.limits, self.metrics)
            past = Past(self.model, self.store, price=PRICE)
            servicer = TelemetryServicer(
                *(self.model, self.metrics, self.limits, past, service.draining),
                jaeger_ui=JAEGER_UI,
                grafana_url=GRAFANA_URL,
            )
            service.add(add_TelemetryServiceServicer_to_server, servicer, FULL_NAME)
            service.background("projection", self.projector.run)
            service.background("recoveries", meter.run)
            if dashboard:
                door = take("127.0.0.1:0")
                service.on_close(door.close)
                self.dashboard = Dashboard(
                    self.model,
                    self.projector,
                    self.queue,
                    taken=door,
                    token=TOKEN,
                    deployment=DEPLOYMENT,
                    jaeger_ui=JAEGER_UI,
                    price=PRICE,
                    grafana_url=GRAFANA_URL,
                )
                service.background("dashboard", self.dashboard.run)
            await service.start()
            self.service = service
            async with connect(service.endpoint, TOKEN, actor="agent") as channel:
                self.stub: Any = TelemetryServiceStub(channel)
                yield self

    async def push(self, *, node: str = "node-a", **records: Any) -> t.PushResponse:
        self._sequence += 1
        call = self.stub.Push()
        await call.write(t.PushRequest(node=node, sequence=self._sequence, **records))
        response: t.PushResponse = await call.read()
        await call.done_writing()
        return response

    async def until(self, condition: Callable[[], Coroutine[Any, Any, R]], what: str, within_s: float = 10) -> R:
        """Ask until the answer is true."""
        return await until(condition, what, within_s)

    async def folded(self) -> None:
        """The projection has reached the log's head."""
        head = await self.store.head()

        async def there() -> bool:
            try:
                cursor = await self.model.history.cursor()
            except HistoryAway:
                return False
            return head.revision == 0 or (cursor is not None and cursor.log == head.log and cursor >= head)

        await self.until(there, "projection at the head")


class Threaded:
    """A world in a thread of its own, for tests that drive a browser synchronously."""

    def __init__(self, data: Path) -> None:
        self.world = World(data, Limits())
        self._loop: asyncio.AbstractEventLoop
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="world")

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self.world.running(dashboard=True):
            self._ready.set()
            await self._end.wait()

    def do(self, work: Coroutine[Any, Any, R]) -> R:
        """Run `work` in the world's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    @contextlib.contextmanager
    def running(self) -> Generator[Threaded]:
        self._thread.start()
        try:
            assert self._ready.wait(20), "the world did not start"
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(20)
            assert not self._thread.is_alive(), "the world did not end"


async def a_running_job(world: World, job: str = "job-live", *, upto: int = 380) -> None:
    """A job in the middle of its way: three checkpoints, one lost worker, one recovery."""
    now = now_ms()
    began = now - 60_000 - (upto - 200) * 250 - 3_000
    await world.log.submit(job, name="gpt-stdlib", at_ms=began - 2000)
    await world.log.start(job, at_ms=began)
    await world.log.plan(job, at_ms=began + 10)
    await world.log.measured(job, step_s=0.25, verdict="AsPredicted")
    await world.push(steps=steps(job, 1, 240, end_ms=began + 60_000))
    for step in (100, 200):
        await world.log.checkpoint(job, step, at_ms=began + step * 250)
    await world.log.lose(job, 1, step=240, at_ms=began + 60_200)
    await world.log.generation(job, 2, at_ms=began + 61_100)
    await world.log.plan(job, generation=2, at_ms=began + 61_200)
    await world.push(steps=steps(job, 201, upto, generation=2, end_ms=now))
    await world.log.checkpoint(job, 300, generation=2, at_ms=now - 20_000)
    await world.push(
        resources=[
            t.ResourceSample(
                job=job, rank=rank, worker=f"{job}.1.node-a.{rank}", at_ms=now, cpu_ratio=0.93 - rank / 10,
                rss_bytes=(620 + 35 * rank) << 20, gpu_ratio=0.81 - rank / 10, gpu_bytes=5 << 30,
            )
            for rank in range(2)
        ],
        logs=lines(job, [f"step {i} loss {loss_at(i):.4f}" for i in range(300, upto)])
        + lines(job, ["UserWarning: the sampler was not set"], rank=1, stream="stderr"),
    )  # fmt: skip
    await world.folded()
