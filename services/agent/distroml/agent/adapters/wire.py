"""Between the agent's own words and the protobuf messages of other services."""

from __future__ import annotations

from distroml.agent.domain.effects import Observe, ReportExit, ReportHang
from distroml.agent.domain.exits import Category
from distroml.agent.domain.gang import Formed
from distroml.api.common.v1 import common_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import nodes_pb2 as nodes
from distroml.api.telemetry.v1 import telemetry_pb2 as telemetry
from distroml.workerlink import (
    CompressionAdvised,
    LinksProbed,
    Member,
    PlanChosen,
    PlanMeasured,
    SchemeChanged,
    Span,
    StepRecorded,
    StepSample,
)

_PREFIX = "FAILURE_CATEGORY_"


def category_to_wire(category: Category) -> common_pb2.FailureCategory.ValueType:
    """The contract's value of the same name."""
    return common_pb2.FailureCategory.Value(_PREFIX + category.value)


def category_from_wire(value: common_pb2.FailureCategory.ValueType) -> Category:
    """Our value of the same name; what we do not know is unspecified."""
    name = common_pb2.FailureCategory.Name(value).removeprefix(_PREFIX)
    return Category(name) if name in Category.__members__ else Category.UNSPECIFIED


def formed_from_wire(message: rdzv.Generation, traceparent: str = "") -> Formed:
    """A generation in our words, formed in the span that `traceparent` names."""
    host, _, port = message.store_endpoint.rpartition(":")
    return Formed(
        number=message.number,
        world_size=message.world_size,
        members=tuple(
            Member(worker=m.worker, node=m.node, rank=m.rank, local_rank=m.local_rank) for m in message.members
        ),
        node_ranks={m.node: m.node_rank for m in message.members},
        local_world_sizes={m.node: m.local_world_size for m in message.members},
        store_host=host.removeprefix("[").removesuffix("]"),
        store_port=int(port or 0),
        traceparent=traceparent,
    )


def exit_report(effect: ReportExit, incarnation: int, now_ms: int) -> rdzv.WorkerReport:
    """An end, for rendezvous."""
    v = effect.verdict
    return rdzv.WorkerReport(
        report_id=f"{effect.worker}.{incarnation}.exit",
        worker=effect.worker,
        generation=effect.generation,
        exited=rdzv.WorkerExited(
            at_ms=v.at_ms or now_ms,
            worker=effect.worker,
            generation=effect.generation,
            rank=effect.rank,
            code=v.code,
            signal=v.signal,
            category=category_to_wire(v.category),
            message=v.message,
            last_step=v.last_step,
            expected=v.expected,
            traceback=v.traceback,
        ),
    )


def hang_report(effect: ReportHang, incarnation: int, now_ms: int) -> rdzv.WorkerReport:
    """A hang, for rendezvous."""
    return rdzv.WorkerReport(
        report_id=f"{effect.worker}.{incarnation}.hang",
        worker=effect.worker,
        generation=effect.generation,
        hang=rdzv.HangDetected(
            at_ms=now_ms,
            worker=effect.worker,
            generation=effect.generation,
            rank=effect.rank,
            silent_s=effect.silent_s,
            last_step=effect.last_step,
        ),
    )


def step_report(worker: str, said: StepRecorded) -> rdzv.WorkerReport:
    """A step worth an event, for rendezvous."""
    return rdzv.WorkerReport(
        report_id=f"{worker}.{said.generation}.step.{said.step}.{said.why}",
        worker=worker,
        generation=said.generation,
        step=rdzv.StepRecorded(
            at_ms=said.at_ms,
            generation=said.generation,
            step=said.step,
            sample_from=said.sample_from,
            sample_to=said.sample_to,
            epoch=said.epoch,
            loss=said.loss,
            fingerprint=said.fingerprint,
            why=said.why,
        ),
    )


def plan_report(worker: str, said: PlanChosen, now_ms: int) -> rdzv.WorkerReport:
    """The plan of a generation, for rendezvous."""
    return rdzv.WorkerReport(
        report_id=f"{worker}.{said.generation}.plan",
        worker=worker,
        generation=said.generation,
        plan=rdzv.PlanChosen(
            at_ms=now_ms,
            generation=said.generation,
            plan=said.plan,
            inputs=said.inputs,
            prediction=said.prediction,
            best=said.best,
            alternatives_hash=said.alternatives_hash,
        ),
    )


def measured_report(worker: str, said: PlanMeasured, now_ms: int) -> rdzv.WorkerReport:
    """What a generation's plan turned out to cost, for rendezvous."""
    return rdzv.WorkerReport(
        report_id=f"{worker}.{said.generation}.measured.{said.steps}",
        worker=worker,
        generation=said.generation,
        measured=rdzv.PlanMeasured(
            at_ms=now_ms,
            generation=said.generation,
            steps=said.steps,
            step_seconds=said.step_seconds,
            peak_bytes_per_rank=said.peak_bytes_per_rank,
            predicted_step_seconds=said.predicted_step_seconds,
            predicted_peak_bytes_per_rank=said.predicted_peak_bytes_per_rank,
            parts=said.parts,
            verdict=said.verdict,
            message=said.message,
        ),
    )


def links_report(worker: str, said: LinksProbed, now_ms: int) -> rdzv.WorkerReport:
    """What the links between a generation's workers do, for rendezvous."""
    return rdzv.WorkerReport(
        report_id=f"{worker}.{said.generation}.links",
        worker=worker,
        generation=said.generation,
        links=rdzv.LinksProbed(
            at_ms=now_ms,
            generation=said.generation,
            topology=said.topology,
            seconds=said.seconds,
            reused=said.reused,
            sums=said.sums,
        ),
    )


def scheme_report(worker: str, said: SchemeChanged, now_ms: int) -> rdzv.WorkerReport:
    """Another compression scheme of buckets, for rendezvous."""
    first = min(said.buckets, default=0)
    return rdzv.WorkerReport(
        report_id=f"{worker}.{said.generation}.scheme.{said.from_step}.{first}",
        worker=worker,
        generation=said.generation,
        scheme=rdzv.SchemeChanged(
            at_ms=now_ms,
            generation=said.generation,
            bucket=first,
            from_scheme=said.from_scheme,
            to_scheme=said.to_scheme,
            reason=said.reason,
            why=said.why,
            from_step=said.from_step,
            buckets=said.buckets,
            place=said.place,
        ),
    )


def advice_report(worker: str, said: CompressionAdvised, now_ms: int) -> rdzv.WorkerReport:
    """What compression would gain a generation, for rendezvous."""
    return rdzv.WorkerReport(
        report_id=f"{worker}.{said.generation}.advice",
        worker=worker,
        generation=said.generation,
        advice=rdzv.CompressionAdvised(
            at_ms=now_ms,
            generation=said.generation,
            step=said.step,
            step_seconds=said.step_seconds,
            exposed_seconds=said.exposed_seconds,
            predicted_step_seconds=said.predicted_step_seconds,
            faster=said.faster,
            schemes=said.schemes,
        ),
    )


def observation(
    job: str, attempt: int, effect: Observe, *, id: str, step: int = 0, total_steps: int = 0
) -> nodes.AttemptObservation:
    """Where an attempt stands on this node, for the scheduler."""
    return nodes.AttemptObservation(
        observation_id=id,
        job=job,
        attempt=attempt,
        phase=nodes.AttemptPhase.Value(f"ATTEMPT_PHASE_{effect.phase.value}"),
        category=category_to_wire(effect.category),
        message=effect.message,
        step=step,
        total_steps=total_steps,
    )


def step_sample(job: str, rank: int, world_size: int, said: StepSample) -> telemetry.StepSample:
    """One step of one rank, for telemetry."""
    return telemetry.StepSample(
        job=job,
        rank=rank,
        generation=said.generation,
        step=said.step,
        total_steps=said.total_steps,
        at_ms=said.at_ms,
        loss=said.loss,
        grad_norm=said.grad_norm,
        step_s=said.step_s,
        data_wait_s=said.data_wait_s,
        comm_wait_s=said.comm_wait_s,
        samples=said.samples,
        tokens=said.tokens,
        learning_rate=said.learning_rate,
        world_size=world_size,
        extra=said.extra,
        wire_bytes=said.wire_bytes,
    )


def span_record(job: str, said: Span) -> telemetry.SpanRecord:
    """A worker's span, for telemetry."""
    return telemetry.SpanRecord(
        job=job,
        trace_id=said.trace_id,
        span_id=said.span_id,
        parent_span_id=said.parent_span_id,
        name=said.name,
        start_ns=said.start_ns,
        end_ns=said.end_ns,
        attributes={key: str(value) for key, value in said.attributes.items()},
    )
