from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from distroml.agent import storehost
from distroml.agent.adapters.gpus import Gpus
from distroml.agent.adapters.processes import read_identity
from distroml.agent.agent import Agent, end_leftovers
from distroml.agent.launch import LaunchOrder
from distroml.agent.launcher import Launched, ProcessLauncher
from distroml.agent.settings import AgentSettings
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.scheduler.v1 import nodes_pb2 as nodes
from distroml.bundle import pack
from distroml.observability.tracing import Tracing
from distroml.rpc import connect
from services.agent.tests.plane import Plane

STORE = Path(__file__).with_name("small_store.py")


class ColdLauncher(ProcessLauncher):
    """Real holders and processes; the store host without torch, which takes seconds to import."""

    async def start(self, order: LaunchOrder, *, warm: bool = True) -> Launched:
        if order["argv"][0] == storehost.__file__:
            order = LaunchOrder(**{**order, "argv": [str(STORE), *order["argv"][1:]]})
        return await super().start(order, warm=warm)


class World:
    """A plane, a data folder, and agents over it one after the other."""

    def __init__(self, data: Path, plane: Plane, stack: AsyncExitStack) -> None:
        self.data = data
        self.plane = plane
        self._stack = stack

    async def agent(self, *, gpus: Gpus | None = None, **settings: object) -> Running:
        running = Running(self.data, self.plane, settings, gpus)
        await running.start()
        self._stack.push_async_callback(running.stop)
        return running

    def bundle(self, files: dict[str, str], tmp: str = "code") -> str:
        root = self.data / tmp
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(textwrap.dedent(text))
        packed = pack(root, self.data / f"{tmp}.tar.gz")
        self.plane.scheduler.bundles[packed.sha256] = packed.path.read_bytes()
        return packed.sha256

    def attempt(
        self, node: str, bundle: str, *command: str, workers: int = 2, traceparent: str = "", **spec: object
    ) -> nodes.DesiredAttempt:
        job = jobs.JobSpec(
            name="job",
            project="default",
            command=command,
            bundle=bundle,
            workers=jobs.WorkerRange(min=1, max=workers),
            **spec,  # pyright: ignore[reportArgumentType]
        )
        return nodes.DesiredAttempt(
            job="job-1",
            attempt=1,
            spec=job,
            slots=[f"cpu-{index}" for index in range(workers)],
            gang=[nodes.GangMember(node=node, workers=workers)],
            failures_left=3,
            traceparent=traceparent,
        )


class Running:
    """An agent with its tasks."""

    def __init__(self, data: Path, plane: Plane, settings: dict[str, object], gpus: Gpus | None) -> None:
        self.settings = AgentSettings(
            service="agent",
            data=data,
            token="token",
            deployment="dep-1",
            **{"slots": 4, "warm": False, **settings},  # pyright: ignore[reportArgumentType]
        )
        self._plane = plane
        self._gpus = gpus
        self.spans = InMemorySpanExporter()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    async def start(self) -> None:
        self.channel = connect(self._plane.endpoint, "token", actor="agent")
        warm = self.settings.warm
        self.agent = Agent(
            self.settings,
            dict(os.environ),
            scheduler=self.channel,
            rendezvous=self.channel,
            checkpoint=self.channel,
            telemetry=self.channel,
            tracing=Tracing("agent", [SimpleSpanProcessor(self.spans)]),
            launcher=None if warm else ColdLauncher(None),
            gpus=self._gpus,
        )
        await self.agent.start()
        node = self.agent.node
        self._tasks = [asyncio.create_task(work()) for work in (node.stream.run, node.telemetry.run, self.agent.watch)]

    @property
    def id(self) -> str:
        return self.agent.node.id

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.agent.close()
        await self.channel.close(None)


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane()
    await plane.start()
    yield plane
    await plane.stop()


@pytest.fixture
async def world(tmp_path: Path, plane: Plane) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(end_leftovers, tmp_path / "node" / "workers", keep=set(), grace_s=0)
        yield World(tmp_path, plane, stack)


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., LaunchOrder]:
    """Orders to start a worker in a folder of its own."""
    count = 0

    def make(*argv: str, **changes: object) -> LaunchOrder:
        nonlocal count
        count += 1
        folder = tmp_path / f"w{count}"
        folder.mkdir()
        base = LaunchOrder(
            worker=f"job.1.node.{count}",
            incarnation=1,
            folder=str(folder),
            python=sys.executable,
            argv=list(argv),
            cwd=str(tmp_path),
            env={**os.environ, "DISTROML_WORKER": f"job.1.node.{count}"},
            log_cap_bytes=1 << 20,
            orphan_grace_s=60.0,
        )
        return LaunchOrder(**{**base, **changes})  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path):
    """No test leaves a worker or holder behind."""
    yield
    deadline = time.monotonic() + 3
    while (left := _alive(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes were left running: {left}"


def _alive(below: Path) -> list[int]:
    found: list[int] = []
    for path in below.rglob("identity.json"):
        identity = read_identity(path.parent)
        if identity is not None:
            found += [identity.holder_pid] * identity.holder_lives + [identity.worker_pid] * identity.worker_lives
    return found
