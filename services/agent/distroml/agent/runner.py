"""Runs one attempt on this node: feeds the policy with what happens and does what it decides."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from distroml.agent.adapters import wire
from distroml.agent.adapters.bundles import CodeUnavailable
from distroml.agent.adapters.checkpoints import Checkpoints, JobFacts
from distroml.agent.adapters.mpi import MpiHost, MpiUnavailable, why_not
from distroml.agent.adapters.rendezvous import RendezvousStream
from distroml.agent.adapters.stores import StoreHost
from distroml.agent.attemptfile import AttemptFile
from distroml.agent.domain import effects, inputs
from distroml.agent.domain.attempt import step
from distroml.agent.domain.environment import MissingSecret
from distroml.agent.domain.gang import Attempt, Order, Phase
from distroml.agent.launcher import CannotStart
from distroml.agent.node import Node
from distroml.agent.places import Places
from distroml.agent.saying import Saying
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import nodes_pb2 as pb
from distroml.events import fresh_id
from distroml.observability import logger, names, trace
from distroml.rpc import RemoteError
from distroml.workerlink.backends import MPI

log = logger(__name__)

DEFAULT_GRACE_S = 30
DEFAULT_LOG_CAP_BYTES = 256 << 20
DEFAULT_KEEP = 3


class AttemptRunner:
    """One attempt, from the first time it is desired until nothing is left of it here."""

    def __init__(self, node: Node, desired: pb.DesiredAttempt) -> None:
        self.node = node
        self.desired = desired
        self.name = f"{desired.job}.{desired.attempt}"
        self.folder = node.workers / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._inputs: deque[inputs.Input] = deque()
        self._feeding = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._preparing: asyncio.Task[None] | None = None
        self._base: dict[str, str] = {}
        self._removed = False
        self._wound_up = asyncio.Event()
        self._file = AttemptFile(self.folder)
        keep = desired.spec.checkpoint.keep if desired.spec.checkpoint.HasField("keep") else DEFAULT_KEEP
        facts = JobFacts(job=desired.job, project=desired.spec.project, keep=keep, traceparent=desired.traceparent)
        self.checkpoints = Checkpoints(node.checkpoint, facts, node.spool, node.link.tell)
        self.rendezvous = RendezvousStream(
            node.rendezvous,
            node.spool,
            self.name,
            hear=self.feed,
            heartbeat=lambda: self.state.running_generation,
            traceparent=desired.traceparent,
        )
        self.places = Places(self)
        self.saying = Saying(self)
        self.stores = StoreHost(
            self.folder,
            node.launcher,
            name=f"{self.name}.store",
            python=sys.executable,
            env=node.environment({}),
            address=node.settings.address,
            orphan_grace_s=node.settings.orphan_grace_s,
            on_lost=self._join,
        )
        self.mpi = MpiHost(
            self.folder,
            node.launcher,
            name=f"{self.name}.mpi",
            python=desired.spec.python or sys.executable,
            orphan_grace_s=node.settings.orphan_grace_s,
        )
        grace_s = float(desired.spec.grace_s or DEFAULT_GRACE_S)
        self.state: Attempt
        self.state, self._found = self._file.load(self._workers(), grace_s)
        self.state = replace(self.state, reforms=desired.spec.backend != MPI)

    # ---- life

    def start(self) -> None:
        """Take over what an earlier agent left, then make the attempt so."""
        self.places.adopt(self._found)
        self.stores.adopt()
        self.mpi.adopt()
        self.checkpoints.resume()
        if self.desired.HasField("stop"):
            self._order()
        else:
            self._preparing = self.spawn(self._prepare(), "prepare")

    def update(self, desired: pb.DesiredAttempt) -> None:
        """The scheduler's wish changed."""
        before, self.desired = self.desired, desired
        if desired.HasField("stop"):
            self._order()
        elif before.gang != desired.gang or before.slots != desired.slots:
            self.feed(inputs.Resized(tuple(self._workers())))

    def remove(self) -> None:
        """The attempt is no longer desired."""
        self._removed = True
        self.feed(inputs.Removed())

    def end(self, order: Order) -> None:
        """End the attempt here for a reason of the node's own."""
        self.feed(inputs.Ordered(order))

    @property
    def gone(self) -> bool:
        """Removed, and nothing is left of it."""
        return self._removed and self.over

    @property
    def over(self) -> bool:
        """Nothing of it is left, and nothing more will come."""
        return self.state.over and not self.places.running

    @property
    def settled(self) -> bool:
        """No process is left in a place that the attempt no longer has."""
        return not any(place.leaving for place in self.state.places)

    def hello(self) -> pb.AttemptObservation:
        """Where it stands, for a new connection to the scheduler."""
        effect = effects.Observe(self.state.phase, self.state.category, self.state.message)
        return self._observation(effect)

    async def said_all(self) -> None:
        """Wait until the last reports are away and the store host has ended."""
        if self.over:
            await self._wound_up.wait()

    async def close(self) -> None:
        """Let go: workers, holders and the store host go on without this agent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.rendezvous.close()
        await self.checkpoints.close()
        await self.stores.close(end=False)
        await self.mpi.close(end=False)
        await self.places.let_go()

    # ---- the policy

    def feed(self, happened: inputs.Input) -> None:
        """Something happened; decide and do."""
        self._inputs.append(happened)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._inputs:
                self._step(self._inputs.popleft())
        finally:
            self._feeding = False

    def _step(self, happened: inputs.Input) -> None:
        self.state, todo = step(self.state, happened)
        if todo:
            log.debug("attempt", attempt=self.name, happened=repr(happened), todo=repr(todo))
        self._file.save(self.state)
        for effect in todo:
            self._do(effect)

    def _do(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Join():
                self._join()
            case effects.SayReady(after=after, workers=workers, error=error):
                self.rendezvous.ready(after, workers, error)
            case effects.AskRestore(number=number):
                self.spawn(self._ask_restore(number), f"restore {number}")
            case effects.StartWorker():
                self.places.start(effect, self._base)
            case effects.EndWorker():
                self.places.end(effect)
            case effects.Tell(worker=worker, message=message):
                self.places.tell(worker, message)
            case effects.Wake(after_s=after_s, input=happened):
                asyncio.get_running_loop().call_later(after_s, self.feed, happened)
            case effects.ReportExit(worker=worker):
                self.saying.exit(effect)
            case effects.ReportHang():
                self.saying.hang(effect)
            case effects.Leave(reason=reason):
                self.spawn(self.rendezvous.leave(reason), "leave")
            case effects.Observe():
                self.node.stream.observe(self._observation(effect), durable=True)
                if effect.phase in (Phase.STOPPED, Phase.FAILED):
                    self.spawn(self._wind_up(), "wind up")

    def _observation(self, effect: effects.Observe) -> pb.AttemptObservation:
        step_, total = max(((r.step, r.total_steps) for r in self.places.running.values()), default=(0, 0))
        id = f"{self.name}.{effect.phase}.{fresh_id('obs')}"
        return wire.observation(self.desired.job, self.desired.attempt, effect, id=id, step=step_, total_steps=total)

    def _order(self) -> None:
        stop = self.desired.stop
        self.feed(inputs.Ordered(Order(reason=stop.reason, grace_s=float(stop.grace_s), checkpoint=stop.checkpoint)))

    # ---- getting ready

    async def _prepare(self) -> None:
        attributes = {names.SPAN_JOB: self.desired.job, names.SPAN_ATTEMPT: self.desired.attempt}
        above = trace.parse(self.desired.traceparent)
        try:
            with self.node.tracing.span(names.SPAN_PREPARE, parent=above, attributes=attributes):
                await self._make_ready()
        except (MissingSecret, CodeUnavailable, MpiUnavailable, OSError) as error:
            self.feed(inputs.PrepareFailed(str(error)))
            return
        self.feed(inputs.Prepared())

    async def _make_ready(self) -> None:
        spec = self.desired.spec
        self._base = self.node.environment(dict(spec.env))
        python = spec.python or sys.executable
        if not os.access(python, os.X_OK):
            raise CodeUnavailable(f"there is no interpreter {python} on this node; install it, or leave `python` out")
        if spec.backend == MPI and (lacking := await why_not(python, self._base)):
            raise MpiUnavailable(f"the back end mpi was asked for, and {lacking}; or choose the back end gloo")
        if spec.bundle:
            await self.node.bundles.unpack(spec.bundle, self.code)
        else:
            self.code.mkdir(parents=True, exist_ok=True)

    @property
    def code(self) -> Path:
        """The workers' working folder."""
        return self.folder / "code"

    def _workers(self) -> list[str]:
        count = next((m.workers for m in self.desired.gang if m.node == self.node.id), len(self.desired.slots))
        return [f"{self.desired.job}.{self.desired.attempt}.{self.node.id}.{index}" for index in range(count)]

    def _join(self) -> None:
        if not self.state.prepared or self.state.order is not None or self.state.closed:
            return
        # A number that no earlier agent can have used either.
        serial = time.time_ns()
        workers, running = self.state.workers, self.state.running_generation

        async def make() -> rdzv.JoinNode | None:
            spec, settings = self.desired.spec, self.node.settings
            try:
                port = await self.stores.port(serial)
            except (CannotStart, OSError) as error:
                self.feed(inputs.PrepareFailed(f"no TCPStore: {error}"))
                return None
            return rdzv.JoinNode(
                job=self.desired.job,
                project=spec.project,
                attempt=self.desired.attempt,
                node=self.node.id,
                agent_id=self.node.agent_id,
                workers=workers,
                expected=[rdzv.ExpectedMember(node=m.node, workers=m.workers) for m in self.desired.gang],
                min_workers=spec.workers.min,
                failures_left=self.desired.failures_left,
                store_endpoint=f"{settings.address}:{port}",
                address=settings.address,
                running_generation=running,
                join_timeout_s=settings.join_timeout_s,
            )

        self.rendezvous.join(make)

    async def _ask_restore(self, number: int) -> None:
        formed = self.state.formed
        try:
            with trace.use(trace.parse(formed.traceparent if formed else self.desired.traceparent)):
                restore = await self.checkpoints.latest(number)
        except RemoteError as error:
            if error.reason == "StaleGeneration":
                # A newer generation is on its way, and asks again.
                return
            self.feed(inputs.PrepareFailed(f"nobody says what generation {number} starts from: {error.message}"))
            return
        self.feed(inputs.RestoreIs(number, restore))

    # ---- looking after it

    def look(self, standstill_s: float) -> None:
        """Once a second: hangs, and progress for the scheduler."""
        self.places.look(standstill_s)
        self.saying.progress()

    def heartbeat(self) -> None:
        """Tell the holders that somebody is there."""
        self.places.heartbeat()
        if self.stores.held is not None:
            self.stores.held.heartbeat()
        self.mpi.heartbeat()

    async def _wind_up(self) -> None:
        """After the last process: the store, the streams, the reports that nobody waits for."""
        if self._preparing is not None and self._preparing is not asyncio.current_task():
            self._preparing.cancel()
        await self.rendezvous.settle(2.0)
        await self.rendezvous.close()
        await self.stores.close(end=True)
        await self.mpi.close(end=True)
        self.rendezvous.forget()
        self._wound_up.set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` beside everything else, until the runner lets go."""
        task = asyncio.create_task(work, name=f"{self.name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of an attempt failed", task=task.get_name(), error=f"{type(error).__name__}: {error}")
