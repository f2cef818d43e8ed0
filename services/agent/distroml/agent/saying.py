"""What an attempt's workers say and do, passed on to whoever wants to know."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from distroml.agent.adapters import wire
from distroml.agent.domain.effects import Observe, ReportExit, ReportHang
from distroml.agent.domain.gang import Phase
from distroml.agent.launcher import Launched
from distroml.agent.worker import Running
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.telemetry.v1 import telemetry_pb2 as telemetry
from distroml.observability import names, trace
from distroml.observability.exporting import dropped
from distroml.observability.tracing import resource
from distroml.workerlink import (
    AskLatest,
    CompressionAdvised,
    CorruptionFound,
    LinksProbed,
    PlanChosen,
    PlanMeasured,
    Samples,
    SaveBegun,
    SaveFailed,
    SchemeChanged,
    ShardSaved,
    Span,
    StepRecorded,
    ToAgent,
    WorkerFailed,
)

if TYPE_CHECKING:
    from distroml.agent.runner import AttemptRunner


class Saying:
    """Reports to rendezvous, samples to telemetry, saves to the catalogue, progress to the scheduler."""

    def __init__(self, runner: AttemptRunner) -> None:
        self._runner = runner
        self._progress = (0, 0)

    def started(self, running: Running, launched: Launched) -> None:
        """A process runs."""
        facts, identity = running.facts, launched.held.identity
        self._report(
            rdzv.WorkerReport(
                report_id=f"{facts.worker}.{facts.incarnation}.started",
                worker=facts.worker,
                generation=facts.generation,
                started=rdzv.WorkerStarted(
                    at_ms=identity.started_at_ms,
                    worker=facts.worker,
                    generation=facts.generation,
                    rank=facts.rank,
                    pid=identity.worker_pid,
                    start=launched.start,
                    node=self._runner.node.id,
                    seconds=launched.seconds,
                    why_cold=launched.why_cold,
                ),
            )
        )

    def exit(self, effect: ReportExit) -> None:
        """A process ended."""
        incarnation = next(
            (place.incarnation for place in self._runner.state.places if place.worker == effect.worker), 0
        )
        self._report(wire.exit_report(effect, incarnation, _now_ms()), durable=True)

    def hang(self, effect: ReportHang) -> None:
        """A worker hangs and is being killed."""
        running = self._runner.places.running.get(effect.worker)
        incarnation = running.facts.incarnation if running is not None else 0
        self._report(wire.hang_report(effect, incarnation, _now_ms()))

    def pass_on(self, running: Running, message: ToAgent) -> None:
        """A worker said something that is not the attempt's own affair."""
        worker, job = running.facts.worker, self._runner.desired.job
        push, checkpoints = self._runner.node.telemetry, self._runner.checkpoints
        match message:
            case Samples(steps=steps, dropped=dropped):
                formed = self._runner.state.formed
                world_size = formed.world_size if formed is not None else 0
                for sample in steps:
                    push.add_step(wire.step_sample(job, running.facts.rank, world_size, sample))
                push.dropped_samples += max(0, dropped - running.dropped_by_worker)
                running.dropped_by_worker = max(dropped, running.dropped_by_worker)
            case Span():
                push.add_span(wire.span_record(job, message))
                self._trace(running, message)
            case StepRecorded():
                self._report(wire.step_report(worker, message))
            case PlanChosen():
                self._report(wire.plan_report(worker, message, _now_ms()))
            case PlanMeasured():
                self._report(wire.measured_report(worker, message, _now_ms()))
            case LinksProbed():
                self._report(wire.links_report(worker, message, _now_ms()))
            case SchemeChanged():
                self._report(wire.scheme_report(worker, message, _now_ms()))
            case CompressionAdvised():
                self._report(wire.advice_report(worker, message, _now_ms()))
            case SaveBegun():
                checkpoints.on_begun(worker, message)
            case ShardSaved():
                checkpoints.on_shard(worker, message)
            case SaveFailed():
                checkpoints.on_failed(worker, message)
            case CorruptionFound():
                checkpoints.on_corruption(worker, message)
            case AskLatest(generation=generation):
                checkpoints.on_ask(worker, generation)
            case WorkerFailed(category=category) if category.lower() == "non_finite":
                self._report(_non_finite(running, message))
            case _:
                pass

    def _trace(self, running: Running, said: Span) -> None:
        """Export a worker's span as that process's own."""
        node, context = self._runner.node, trace.parse(f"00-{said.trace_id}-{said.span_id}-01")
        dropped(max(0, said.dropped - running.dropped_spans), "link")
        running.dropped_spans = max(said.dropped, running.dropped_spans)
        if context is None:
            return
        facts = running.facts
        node.tracing.record(
            said.name,
            context,
            parent=trace.parse(f"00-{said.trace_id}-{said.parent_span_id}-01"),
            start_ns=said.start_ns,
            end_ns=said.end_ns,
            attributes={
                **said.attributes,
                names.SPAN_JOB: self._runner.desired.job,
                names.SPAN_NODE: node.id,
                names.SPAN_WORKER: facts.worker,
            },
            error=said.error,
            of=resource("worker", deployment=node.settings.deployment, instance=f"{facts.worker}.{facts.incarnation}"),
        )

    def progress(self) -> None:
        """Tell the scheduler how far the attempt is, where that changed."""
        steps = [(running.step, running.total_steps) for running in self._runner.places.running.values()]
        step, total = max(steps, default=(0, 0))
        if self._runner.state.phase is Phase.RUNNING and step > 0 and (step, total) != self._progress:
            self._progress = (step, total)
            observation = wire.observation(
                self._runner.desired.job,
                self._runner.desired.attempt,
                Observe(Phase.RUNNING),
                id=f"{self._runner.name}.step.{step}",
                step=step,
                total_steps=total,
            )
            self._runner.node.stream.observe(observation, durable=False)

    def usage(self) -> None:
        """Tell telemetry what the workers use."""
        node = self._runner.node
        held = set(self._runner.desired.slots)
        devices = [slot.device for slot in node.slots if slot.id in held and slot.kind == "cuda"]
        formed = self._runner.state.formed
        for running in self._runner.places.running.values():
            looked = running.usage()
            if looked is None:
                continue
            sample = telemetry.ResourceSample(
                job=self._runner.desired.job,
                rank=running.facts.rank,
                worker=running.facts.worker,
                at_ms=_now_ms(),
                cpu_ratio=looked[0],
                rss_bytes=looked[1],
                node=node.id,
            )
            # A script takes the GPU of its local rank, as under torchrun.
            member = formed.member(running.facts.worker) if formed is not None else None
            if member is not None and member.local_rank < len(devices):
                figures = node.gpus.look(devices[member.local_rank])
                if figures is not None:
                    sample.gpu_ratio, sample.gpu_bytes = figures
            node.telemetry.add_resource(sample)

    def _report(self, report: rdzv.WorkerReport, *, durable: bool = False) -> None:
        self._runner.rendezvous.report(report, durable=durable)


def _non_finite(running: Running, said: WorkerFailed) -> rdzv.WorkerReport:
    facts = running.facts
    return rdzv.WorkerReport(
        report_id=f"{facts.worker}.{facts.incarnation}.nonfinite.{said.last_step}",
        worker=facts.worker,
        generation=facts.generation,
        non_finite=rdzv.NonFiniteDetected(
            at_ms=_now_ms(),
            worker=facts.worker,
            generation=facts.generation,
            rank=facts.rank,
            step=said.last_step,
            what=said.message,
        ),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
