"""The processes of one attempt on this node: started, found again, looked after, judged when they end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from distroml.agent.adapters.held import Held
from distroml.agent.adapters.processes import Identity, tail
from distroml.agent.attemptfile import worker_folder
from distroml.agent.domain import effects, inputs
from distroml.agent.domain.exits import Category, ExitRecord, Intent, Verdict, classify, intent_of, over_mpi
from distroml.agent.domain.gang import Formed, Process
from distroml.agent.launch import EXIT_CANNOT_START, LaunchOrder
from distroml.agent.launcher import CannotStart, Launched
from distroml.agent.node import environment_of
from distroml.agent.worker import Facts, Running, mark_reported
from distroml.api.telemetry.v1 import telemetry_pb2 as telemetry
from distroml.observability import logger, names, trace
from distroml.workerlink import AwaitGeneration, CheckpointRef, Generation, Hello, ToAgent, ToWorker
from distroml.workerlink.backends import MPI

if TYPE_CHECKING:
    from distroml.agent.runner import AttemptRunner

log = logger(__name__)

DEFAULT_LOG_CAP_BYTES = 256 << 20
LAST_WORDS_S = 0.5
"""How long the agent waits for what an ended worker still has in its link's socket."""


class Places:
    """`running` has every process that was started and has not been judged; see `worker.Listener`."""

    def __init__(self, runner: AttemptRunner) -> None:
        self.running: dict[str, Running] = {}
        self._runner = runner

    # ---- begin and end

    def start(self, effect: effects.StartWorker, base: dict[str, str]) -> None:
        """Start a process; its place in the generation comes by its environment."""
        member = effect.formed.member(effect.worker)
        assert member is not None
        running = self._expect(
            Facts(
                worker=effect.worker, incarnation=effect.incarnation, generation=effect.formed.number, rank=member.rank
            )
        )
        running.save_facts()
        self._runner.spawn(self._launch(running, effect.formed, effect.restore, base), f"start {effect.worker}")

    def adopt(self, found: list[tuple[Facts, Identity]]) -> None:
        """Take over the processes of an earlier agent, and the ends that nobody heard of."""
        for facts, identity in found:
            running = self._expect(facts)
            running.seen = replace(running.seen, managed=facts.managed)
            self._attach(running, Held(running.folder, identity))
            log.info("found a worker again", worker=facts.worker, pid=identity.worker_pid, lives=identity.worker_lives)

    def end(self, effect: effects.EndWorker) -> None:
        """Signal a process; the holder keeps why, for whoever reads its exit record."""
        running = self.running.get(effect.worker)
        if running is not None and running.facts.incarnation == effect.incarnation:
            process = self._process(effect.worker)
            intent = process.intent if process is not None else Intent.STOP
            running.end(effect.grace_s, f"{intent}: {effect.why}")

    def tell(self, worker: str, message: ToWorker) -> None:
        """Send over the link; a new generation is kept for the next agent."""
        if isinstance(message, Generation) and (running := self.running.get(worker)) is not None:
            running.facts.generation, running.facts.rank = message.number, message.rank
            running.output.place(message.rank, message.number)
            running.save_facts()
        self._runner.node.link.tell(worker, message)

    async def let_go(self) -> None:
        """Stop watching; holders and workers go on."""
        for running in self.running.values():
            running.output.save()
            if running.held is not None:
                await running.held.let_go()

    def _expect(self, facts: Facts) -> Running:
        folder = worker_folder(self._runner.folder, facts)
        folder.mkdir(parents=True, exist_ok=True)
        # A line that names no span of its own belongs to its job's trace all the same.
        above = trace.parse(self._runner.desired.traceparent)
        record = telemetry.LogRecord(
            job=self._runner.desired.job,
            rank=facts.rank,
            worker=facts.worker,
            generation=facts.generation,
            incarnation=facts.incarnation,
            attempt=self._runner.desired.attempt,
            trace_id=above.trace_id if above else "",
        )
        running = Running(folder, facts, self, self._runner.node.lines.follow(folder, record))
        self.running[facts.worker] = running
        self._runner.node.link.expect(facts.worker, facts.incarnation, running)
        return running

    async def _launch(
        self, running: Running, formed: Formed, restore: CheckpointRef | None, base: dict[str, str]
    ) -> None:
        node, desired = self._runner.node, self._runner.desired
        env = environment_of(node, desired, base, running.facts, formed, restore)
        try:
            if desired.spec.backend == MPI:
                env |= await self._runner.mpi.seat(formed.number, formed.world_size, running.facts.rank, base)
            order = LaunchOrder(
                worker=running.facts.worker,
                incarnation=running.facts.incarnation,
                folder=str(running.folder),
                python=desired.spec.python or sys.executable,
                argv=list(desired.spec.command),
                cwd=str(self._runner.code),
                env=env,
                log_cap_bytes=desired.spec.log_cap_bytes or DEFAULT_LOG_CAP_BYTES,
                orphan_grace_s=node.settings.orphan_grace_s,
            )
            launched = await self._started(running, formed, order)
        except (CannotStart, OSError) as error:
            verdict = Verdict(code=EXIT_CANNOT_START, signal=0, category=Category.SETUP, message=str(error))
            self._over(running, verdict)
            await running.output.finish()
            return
        self._attach(running, launched.held)
        self._runner.saying.started(running, launched)
        log.info(
            "worker started",
            worker=running.facts.worker,
            rank=running.facts.rank,
            start=launched.start,
            seconds=round(launched.seconds, 3),
            why_cold=launched.why_cold,
        )

    async def _started(self, running: Running, formed: Formed, order: LaunchOrder) -> Launched:
        node, facts = self._runner.node, running.facts
        attributes = {
            names.SPAN_JOB: self._runner.desired.job,
            names.SPAN_NODE: node.id,
            names.SPAN_WORKER: facts.worker,
            names.SPAN_GENERATION: facts.generation,
            names.SPAN_RANK: facts.rank,
        }
        above = trace.parse(formed.traceparent)
        with node.tracing.span(names.SPAN_START_WORKER, parent=above, attributes=attributes) as span:
            launched = await node.launcher.start(order)
            span.set_attribute(names.SPAN_START, launched.start)
        return launched

    def _attach(self, running: Running, held: Held) -> None:
        self._runner.node.link.is_pid(running.facts.worker, held.identity.worker_pid)
        running.attach(held)

    def _process(self, worker: str) -> Process | None:
        return next((place.process for place in self._runner.state.places if place.worker == worker), None)

    # ---- what workers do

    def on_hello(self, running: Running, hello: Hello) -> None:
        """A worker is on the link."""
        self._runner.feed(inputs.SaidHello(running.facts.worker, hello.managed, hello.generation))

    def on_link_lost(self, running: Running) -> None:
        """A worker's connection ended."""
        if self.running.get(running.facts.worker) is running:
            self._runner.feed(inputs.LinkLost(running.facts.worker))

    def on_message(self, running: Running, message: ToAgent) -> None:
        """A worker said something."""
        if isinstance(message, AwaitGeneration):
            self._runner.feed(inputs.Awaits(running.facts.worker, message.after, message.error))
        else:
            self._runner.saying.pass_on(running, message)

    def on_ended(self, running: Running, record: ExitRecord) -> None:
        """A process ended."""
        self._runner.spawn(self._judge(running, record), f"end of {running.facts.worker}")

    async def _judge(self, running: Running, record: ExitRecord) -> None:
        # Its last words may still lie in the link's socket: the connection's end comes after them.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await running.link_gone.wait()
        process = self._process(running.facts.worker)
        intent, why = (process.intent, process.why) if process is not None else (Intent.NONE, "")
        if intent is Intent.NONE and (earlier := intent_of(record.ended_by)) is not Intent.NONE:
            intent, why = earlier, record.ended_by.partition(": ")[2]
        verdict = classify(
            record,
            intent=intent,
            why=why,
            # A plain script cannot say that it obeys: having been asked must do.
            obeyed=running.facts.stopping if running.facts.managed else intent is not Intent.NONE,
            said=running.said,
            stderr=tail(running.folder / "stderr") if record.code or record.signal else "",
            last_step=running.step,
        )
        if self._runner.desired.spec.backend == MPI:
            verdict = over_mpi(verdict, self._runner.mpi.ended)
        log.info(
            "worker ended",
            worker=running.facts.worker,
            code=verdict.code,
            signal=verdict.signal,
            category=verdict.category,
            why=verdict.message,
            expected=verdict.expected,
        )
        self._over(running, verdict)
        await running.output.finish()

    def _over(self, running: Running, verdict: Verdict) -> None:
        worker = running.facts.worker
        if self.running.get(worker) is running:
            del self.running[worker]
            self._runner.node.link.forget(worker)
        self._runner.feed(inputs.Exited(worker, running.facts.incarnation, verdict))
        mark_reported(running.folder)

    # ---- looking after them

    def look(self, standstill_s: float) -> None:
        """Once a second: does one hang?"""
        timeout_s = float(self._runner.desired.spec.hang_timeout_s)
        for running in list(self.running.values()):
            facts, process = running.facts, self._process(running.facts.worker)
            idle = self._runner.state.order is not None or process is None or process.awaiting
            hang = running.look(timeout_s, idle=idle, standstill_s=standstill_s)
            if hang is not None and process is not None and not process.doomed:
                log.warning("worker hangs", worker=facts.worker, why=hang.message)
                self._runner.feed(
                    inputs.Hung(facts.worker, facts.incarnation, hang.silent_s, hang.message, running.step)
                )

    def read_output(self) -> None:
        """Several times a second, a bounded piece each."""
        for running in list(self.running.values()):
            running.output.look()

    def heartbeat(self) -> None:
        """Tell the holders that somebody is there."""
        for running in self.running.values():
            running.output.save()
            if running.held is not None:
                running.held.heartbeat()
