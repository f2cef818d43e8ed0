"""The agent: has the scheduler's desired state, and keeps an attempt's runner for each of its attempts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path
from typing import BinaryIO

from grpc.aio import Channel

from distroml.agent import node as nodes
from distroml.agent.adapters.bundles import Bundles
from distroml.agent.adapters.gpus import Gpus
from distroml.agent.adapters.held import Held, read_exit
from distroml.agent.adapters.lines import Lines, LinesHere
from distroml.agent.adapters.node import NodeStream
from distroml.agent.adapters.processes import read_identity, write_whole
from distroml.agent.adapters.shipping import LineCounts, LineShipping
from distroml.agent.adapters.telemetry import TelemetryPush
from distroml.agent.adapters.templates import Templates
from distroml.agent.domain.exits import DOWN, Intent
from distroml.agent.domain.gang import Order
from distroml.agent.domain.silence import standstill
from distroml.agent.domain.warmth import key_of
from distroml.agent.launch import boot_id
from distroml.agent.launcher import Launcher, ProcessLauncher
from distroml.agent.link import LinkServer, socket_path
from distroml.agent.runner import AttemptRunner
from distroml.agent.settings import AgentSettings
from distroml.agent.spool import Spool
from distroml.api.scheduler.v1 import nodes_pb2 as pb
from distroml.events import fresh_id
from distroml.observability import logger
from distroml.observability.tracing import Tracing
from distroml.rpc import SettingsError
from distroml.workerlink import environment as names

log = logger(__name__)

OUTPUT_S = 0.25
LOOK_S = 1.0
USAGE_S = 2.0
HEARTBEAT_S = 5.0

DOWN_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL when the node goes down."""

DOWN_S = 15.0
"""How long going down may take, the last reports included."""


class Agent:
    """One per node folder; a second one is refused."""

    def __init__(
        self,
        settings: AgentSettings,
        environ: dict[str, str],
        *,
        scheduler: Channel,
        rendezvous: Channel,
        checkpoint: Channel,
        telemetry: Channel,
        tracing: Tracing | None = None,
        launcher: Launcher | None = None,
        lines: Lines | None = None,
        gpus: Gpus | None = None,
    ) -> None:
        self.settings = settings
        self.folder = settings.data / "node"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(self.folder / "lock")
        self._runners: dict[str, AttemptRunner] = {}
        self._desired = pb.DesiredState()
        self._ended: list[Path] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.down = False
        gpus = gpus or Gpus.of_machine(environ.get(names.CUDA_VISIBLE_DEVICES))
        slots = nodes.offered_slots(settings, gpus)
        id = nodes.node_id(self.folder)
        spool = Spool(self.folder / "spool")
        push = TelemetryPush(telemetry, id)
        self._environ = environ
        self._templates = Templates(self.folder, most=settings.templates) if settings.warm and not launcher else None
        self.node = nodes.Node(
            id=id,
            agent_id=fresh_id("agent"),
            settings=settings,
            folder=self.folder,
            environ=environ,
            slots=slots,
            gpus=gpus,
            launcher=launcher or ProcessLauncher(self._templates),
            link=LinkServer(socket_path(self.folder, environ)),
            spool=spool,
            stream=NodeStream(
                scheduler, spool, hello=self._hello, desired=self._on_desired, applied=lambda: self._applied()
            ),
            telemetry=push,
            lines=lines or lines_here(push, settings),
            bundles=Bundles(scheduler, self.folder / "bundles"),
            rendezvous=rendezvous,
            checkpoint=checkpoint,
            tracing=tracing or Tracing("agent"),
        )

    # ---- life

    async def start(self) -> None:
        """Take over what an earlier agent left, end what nobody wants, then serve the link."""
        await self.node.link.start()
        if self._templates is not None:
            env = self.node.environment({})
            self._templates.keep(key_of(sys.executable, os.getuid(), env), env, default=True)
        with contextlib.suppress(OSError):
            self._desired = pb.DesiredState.FromString((self.folder / "desired.pb").read_bytes())
        wanted = {f"{each.job}.{each.attempt}" for each in self._desired.attempts}
        for each in self._desired.attempts:
            self._begin(each)
        leftovers = await end_leftovers(self.node.workers, keep=wanted, why=f"{Intent.STOP}: nobody wants it any more")
        log.info("agent started", node=self.node.id, slots=len(self.node.slots), attempts=len(self._runners),
                 revision=self._desired.revision, leftovers=leftovers, link=str(self.node.link.path))  # fmt: skip

    async def watch(self) -> None:
        """Look after processes until cancelled."""
        looked = used = beaten = time.monotonic()
        beat_s = max(0.05, min(HEARTBEAT_S, self.settings.orphan_grace_s / 4))
        while True:
            await asyncio.sleep(min(OUTPUT_S, beat_s))
            now = time.monotonic()
            for runner in self._runners.values():
                runner.places.read_output()
            if now - looked >= LOOK_S:
                late_s = standstill(now, looked, LOOK_S)
                if late_s:
                    log.warning("the agent stood still; everybody gets that time again", seconds=round(late_s, 1))
                looked = now
                for runner in list(self._runners.values()):
                    runner.look(late_s)
                self._sweep()
            if now - used >= USAGE_S:
                used = now
                for runner in self._runners.values():
                    runner.saying.usage()
            if now - beaten >= beat_s:
                beaten = now
                for runner in self._runners.values():
                    runner.heartbeat()
                await self._sync()

    async def go_down(self) -> None:
        """End all workers and say so, where `DATA/node/down` asks for it; else leave them to the next agent."""
        if not (self.folder / "down").exists():
            return
        self.down = True
        log.info("going down: ending all workers", attempts=len(self._runners))
        for runner in self._runners.values():
            runner.end(Order(reason="Down", grace_s=DOWN_GRACE_S, checkpoint=False))
        until = time.monotonic() + DOWN_S
        while time.monotonic() < until and not all(runner.over for runner in self._runners.values()):
            await asyncio.sleep(0.02)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.1, min(3.0, until - time.monotonic()))):
                await asyncio.gather(*(runner.said_all() for runner in self._runners.values()))
        await self.node.telemetry.flush(1.0)

    async def close(self) -> None:
        """Let go of everything; unless the node goes down, workers go on."""
        for runner in self._runners.values():
            await runner.close()
        await self.node.launcher.close()
        if self.down:
            await end_leftovers(self.node.workers, keep=set())
        await self.node.link.close()
        self.node.spool.close()
        self._lock.close()

    # ---- desired state

    def _on_desired(self, desired: pb.DesiredState) -> None:
        if self.down:
            return
        # On disk first: an agent that is started again while the scheduler is away goes on by it.
        try:
            write_whole(self.folder / "desired.pb", desired.SerializeToString())
        except OSError as error:
            log.warning("the desired state is not on disk", error=str(error))
        self._desired = desired
        wanted = {f"{each.job}.{each.attempt}": each for each in desired.attempts}
        for name, runner in self._runners.items():
            if name not in wanted:
                runner.remove()
        for name, each in wanted.items():
            if name in self._runners:
                self._runners[name].update(each)
            else:
                self._begin(each)
        self._sweep()

    def _begin(self, desired: pb.DesiredAttempt) -> None:
        runner = AttemptRunner(self.node, desired)
        self._runners[runner.name] = runner
        log.info("attempt begins", attempt=runner.name, slots=list(desired.slots))
        runner.start()

    def _sweep(self) -> None:
        """Forget what is gone."""
        for name, runner in list(self._runners.items()):
            if runner.gone:
                del self._runners[name]
                self._ended.append(runner.folder)
                self._tasks.append(asyncio.create_task(self._discard(runner)))
        self._tasks = [task for task in self._tasks if not task.done()]
        if self._applied() != self._said_applied:
            self._said_applied = self._applied()
            self.node.stream.beat()

    _said_applied = 0

    async def _discard(self, runner: AttemptRunner) -> None:
        await runner.said_all()
        await runner.close()
        await asyncio.to_thread(shutil.rmtree, runner.folder / "code", True)
        while len(self._ended) > self.settings.kept_attempts:
            await asyncio.to_thread(shutil.rmtree, self._ended.pop(0), True)

    def _applied(self) -> int:
        wanted = {f"{each.job}.{each.attempt}" for each in self._desired.attempts}
        settled = all(name in wanted and runner.settled for name, runner in self._runners.items())
        return self._desired.revision if settled else self._desired.revision - 1

    def _hello(self) -> pb.NodeHello:
        return pb.NodeHello(
            node=self.node.id,
            boot_id=boot_id(),
            agent_id=self.node.agent_id,
            slots=self.node.slots,
            address=self.settings.address,
            labels=nodes.node_labels(),
            attempts=[runner.hello() for runner in self._runners.values()],
        )

    async def _sync(self) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self.node.spool.sync)


async def end_leftovers(workers: Path, *, keep: set[str], why: str = DOWN, grace_s: float = DOWN_GRACE_S) -> int:
    """End every process of attempts other than `keep`; how many there were. Their exit records say `why`."""
    found: list[Held] = []
    for folder in workers.glob("*/*"):
        if folder.parent.name in keep or read_exit(folder) is not None:
            continue
        identity = read_identity(folder)
        if identity is not None and identity.holder_lives:
            held = Held(folder, identity)
            held.end(grace_s, why)
            found.append(held)
    if found:
        await asyncio.wait([held.ended for held in found], timeout=grace_s + 10)
    for held in found:
        await held.let_go()
    return len(found)


def lines_here(push: TelemetryPush, settings: AgentSettings) -> Lines:
    """Lines to telemetry alone, shipped by this process."""
    counts = LineCounts(settings.log_bytes_per_s)
    return LinesHere(LineShipping(push, bytes_per_s=settings.log_bytes_per_s), counts.count)


def _lock(path: Path) -> BinaryIO:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        text = f"another agent runs on {path.parent}; end it first, or use another data folder"
        raise SettingsError([text]) from None
    return file
