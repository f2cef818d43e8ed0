"""Answers put together from several tables of the read model, each read in one go."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.telemetry.adapters.live import LiveRow, read_live
from distroml.telemetry.adapters.plans import Chosen, Prediction, binding_text, plan_text
from distroml.telemetry.adapters.series import (
    RESOURCE_NAMES,
    RESOURCES,
    STEPS,
    read_generations,
    read_history,
    stored_ranks,
)
from distroml.telemetry.domain.rows import PlanRow
from distroml.telemetry.domain.summary import GenerationSamples, Mark, RecoveryRow, current_advice, marks, recoveries
from distroml.telemetry.domain.thinning import Bucket, thinned
from distroml.telemetry.domain.view import JobView

_CATEGORIES = {name.removeprefix("FAILURE_CATEGORY_").lower(): value for name, value in FailureCategory.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail:
    """Everything about one job but its series, lines and events."""

    view: JobView
    live: LiveRow
    recoveries: Sequence[RecoveryRow]
    marks: Sequence[Mark]
    samples: int
    dropped_samples: int
    dropped_lines: int
    cursor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUse:
    """Newest values of one rank."""

    rank: int
    worker: str = ""
    node: str = ""
    at_ms: int = 0
    cpu_ratio: float = 0.0
    rss_bytes: int = 0
    gpu_ratio: float | None = None
    gpu_bytes: int | None = None
    step: int = 0
    step_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What the samples of a job say of it."""

    live: LiveRow
    generations: Mapping[int, GenerationSamples]
    samples: int
    dropped_samples: int
    dropped_lines: int


def read_samples(db: sqlite3.Connection, job: str, *, count_samples: bool = False) -> Samples:
    """All zeros where there are none."""
    dropped = db.execute("SELECT samples, lines FROM dropped WHERE job=?", (job,)).fetchone() or (0, 0)
    return Samples(
        live=read_live(db, job),
        generations=read_generations(db, job),
        samples=_samples(db, job) if count_samples else 0,
        dropped_samples=dropped[0],
        dropped_lines=dropped[1],
    )


def job_detail(job: str, view: JobView | None, known: Samples, cursor: str) -> JobDetail | None:
    """What is known of a job, put together; None where that is nothing."""
    if view is None and not known.live.at_ms:
        return None
    view = view or JobView(job=job)
    return JobDetail(
        view=view,
        live=known.live,
        recoveries=recoveries(view, known.generations),
        marks=marks(view, known.generations),
        samples=known.samples,
        dropped_samples=known.dropped_samples,
        dropped_lines=known.dropped_lines,
        cursor=cursor,
    )


def read_use(db: sqlite3.Connection, job: str) -> dict[int, WorkerUse]:
    """Newest resource values and step of each rank."""
    steps = {
        rank: (step, at)
        for rank, step, at in db.execute("SELECT rank, step, at_ms FROM rank_steps WHERE job=?", (job,))
    }
    use = {rank: WorkerUse(rank=rank, step=step, step_at_ms=at) for rank, (step, at) in steps.items()}
    for rank, worker, node, at, cpu, rss, gpu, gpu_bytes in db.execute(
        "SELECT rank, worker, node, at_ms, cpu_ratio, rss_bytes, gpu_ratio, gpu_bytes FROM resources WHERE job=?",
        (job,),
    ):
        step, step_at = steps.get(rank, (0, 0))
        use[rank] = WorkerUse(
            rank=rank,
            worker=worker,
            node=node,
            at_ms=at,
            cpu_ratio=cpu,
            rss_bytes=rss,
            gpu_ratio=gpu,
            gpu_bytes=gpu_bytes,
            step=step,
            step_at_ms=step_at,
        )
    return use


def read_series(
    db: sqlite3.Connection, job: str, names: Sequence[str], ranks: Sequence[int], from_step: int, max_points: int
) -> list[t.Series]:
    """Series thinned to at most `max_points` each; names without a value are left out."""
    result: list[t.Series] = []
    for kind, wanted in (
        (STEPS, [n for n in names if n not in RESOURCE_NAMES]),
        (RESOURCES, [n for n in names if n in RESOURCE_NAMES]),
    ):
        if not wanted:
            continue
        for rank in ranks or stored_ranks(db, job, kind)[:1]:
            history = read_history(db, (job, kind, rank), from_x=from_step if kind == STEPS else 0)
            result.extend(series_of(history, rank, wanted, max_points, kind))
    return result


def series_of(
    history: Sequence[Bucket], rank: int, names: Sequence[str], max_points: int, kind: str
) -> list[t.Series]:  # fmt: skip
    """The named series of a history, thinned; names without a value are left out."""
    result: list[t.Series] = []
    for name in names:
        if rows := thinned([b for b in history if name in b.stats], max_points):
            result.append(t.Series(name=name, rank=rank, points=[_point(b, name, kind) for b in rows]))
    return result


def _point(b: Bucket, name: str, kind: str) -> t.Point:
    n, total, low, high = b.stats[name]
    step = b.x if kind == STEPS else 0
    return t.Point(step=step, at_ms=b.at_ms, mean=total / n, min=low, max=high, generation=b.generation)


def _samples(db: sqlite3.Connection, job: str) -> int:
    ranks = stored_ranks(db, job, STEPS)
    if not ranks:
        return 0
    history = read_history(db, (job, STEPS, ranks[0]))
    return int(sum(b.stats["samples"][1] for b in history if "samples" in b.stats))


def summary_message(detail: JobDetail, chosen: Chosen | None = None) -> t.JobSummary:
    """The detail as the contract has it; `chosen` is the newest plan with its reasons."""
    view, live = detail.view, detail.live
    summary = t.JobSummary(
        job=view.job,
        step=live.step if live.at_ms else view.step,
        total_steps=live.total_steps or view.total_steps,
        tokens_per_s=live.tokens_per_s,
        samples_per_s=live.samples_per_s,
        step_s=live.step_s,
        samples=detail.samples,
        eta_ms=0 if view.ended else live.eta_ms,
        world_size=view.world_size or live.world_size,
        generation=max(view.generation, live.generation),
        checkpoints=view.checkpoints_committed,
        last_checkpoint_step=max(0, view.last_checkpoint_step),
        position=detail.cursor,
        dropped_samples=detail.dropped_samples,
        dropped_lines=detail.dropped_lines,
    )
    if live.loss is not None:
        summary.loss = live.loss
    for row in detail.recoveries:
        summary.recoveries.append(
            t.Recovery(
                generation=row.generation,
                lost_at_ms=row.lost_at_ms,
                formed_at_ms=row.formed_at_ms,
                first_step_at_ms=row.first_step_at_ms,
                cause=row.cause,
                worker=row.worker,
                resumed_from_step=row.resumed_from_step,
                category=_CATEGORIES.get(row.category, FailureCategory.FAILURE_CATEGORY_UNSPECIFIED),
            )
        )
    for plan in view.plans:
        summary.plans.append(_plan(plan, chosen))
    for row in view.schemes:
        summary.schemes.append(
            t.JobScheme(
                generation=row.generation,
                at_ms=row.at_ms,
                from_step=row.from_step,
                bucket=row.bucket,
                from_scheme=row.from_scheme,
                to_scheme=row.to_scheme,
                reason=row.reason,
                why=row.why,
                buckets=row.numbers,
                place=row.place,
            )
        )
    for row in view.holding:
        summary.held.append(
            t.HeldScheme(generation=row.generation, place=row.place, scheme=row.scheme, buckets=row.buckets)
        )
    if (advice := current_advice(view)) is not None:
        summary.advice.CopyFrom(
            t.CompressionAdvice(
                generation=advice.generation,
                step=advice.step,
                step_seconds=advice.step_s,
                exposed_seconds=advice.exposed_s,
                predicted_step_seconds=advice.predicted_s,
                faster=advice.faster,
                schemes=advice.schemes,
            )
        )
    return summary


def _plan(row: PlanRow, chosen: Chosen | None) -> t.JobPlan:
    plan = t.JobPlan(
        generation=row.generation,
        at_ms=row.at_ms,
        plan=row.plan,
        predicted_step_seconds=row.predicted_s,
        predicted_peak_bytes_per_rank=row.predicted_bytes,
        steps=row.steps,
        step_seconds=row.measured_s,
        peak_bytes_per_rank=row.measured_bytes,
        verdict=row.verdict,
        message=row.message,
        sums=row.sums,
    )
    if chosen is not None and chosen.generation == row.generation:
        plan.reasons.extend(chosen.reasons)
        plan.alternatives_hash = chosen.alternatives_hash
        plan.binding = binding_text(chosen.prediction.binding)
        for other in chosen.best:
            prediction = other.prediction or Prediction()
            plan.others.append(
                t.OtherPlan(
                    plan=plan_text(other.plan),
                    step_seconds=prediction.step_seconds,
                    peak_bytes_per_rank=int(prediction.peak_bytes_per_rank),
                    reason=other.reason,
                )
            )
    return plan
