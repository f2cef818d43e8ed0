"""A job as its public events tell it: a pure fold, bounded in every list.

Views, rows and facts are msgspec's structs: changing a field of a view is most of what folding costs, and they do it
some twenty times as fast as dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import msgspec
from msgspec.structs import replace

from distroml.telemetry.domain import facts as f
from distroml.telemetry.domain.rows import (
    AdviceRow,
    CheckpointRow,
    GenerationRow,
    HeldRow,
    PlanRow,
    SchemeRow,
    WorkerRow,
)
from distroml.telemetry.domain.schemes import held_of, hold, row_of, with_change

MAX_WORKERS = 1024
MAX_GENERATIONS = 200
MAX_CHECKPOINTS = 200
MAX_PLANS = 20
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """What the dashboard shows of a job beyond its samples."""

    job: str
    project: str = ""
    name: str = ""
    command: tuple[str, ...] = ()
    state: str = ""
    reason: str = ""
    message: str = ""
    category: str = ""
    priority: int = 0
    min_workers: int = 0
    max_workers: int = 0
    placed_workers: int = 0
    placed_since_ms: int = 0
    nodes: tuple[str, ...] = ()
    attempt: int = 0
    generation: int = 0
    world_size: int = 0
    mesh: tuple[tuple[str, int], ...] = ()
    plans: tuple[PlanRow, ...] = ()
    schemes: tuple[SchemeRow, ...] = ()
    held: tuple[HeldRow, ...] = ()
    advice: AdviceRow | None = None
    submitted_ms: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    step: int = 0
    total_steps: int = 0
    failures: int = 0
    preemptions: int = 0
    restarts: tuple[tuple[str, int], ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    generations: tuple[GenerationRow, ...] = ()
    checkpoints: tuple[CheckpointRow, ...] = ()
    checkpoints_committed: int = 0
    last_checkpoint_step: int = -1
    compress: str = ""
    trace_id: str = ""

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in ENDED

    @property
    def holding(self) -> tuple[HeldRow, ...]:
        """The schemes that hold; views that an earlier release kept have the changes alone."""
        return self.held or held_of(self.schemes)


def evolve(view: JobView, fact: f.JobFact) -> JobView:
    """The view after one more fact."""
    after = _evolved(view, fact)
    if after.placed_workers != view.placed_workers or after.attempt != view.attempt:
        after = replace(after, placed_since_ms=fact.at_ms if after.placed_workers else 0)
    return after


def _evolved(view: JobView, fact: f.JobFact) -> JobView:
    match fact:
        # By how often they come: each case costs those after it.
        case f.SaveSeen() | f.CheckpointMarked():
            return _checkpoint(view, fact)
        case f.Progressed(step=step, total_steps=total):
            return replace(view, step=step, total_steps=total or view.total_steps)
        case f.Submitted():
            return replace(
                view,
                name=fact.name,
                project=fact.project,
                command=fact.command,
                min_workers=fact.min_workers,
                max_workers=fact.max_workers,
                priority=fact.priority,
                state="queued",
                submitted_ms=fact.at_ms,
                compress=fact.compress,
                trace_id=fact.trace_id,
            )
        case f.StateChanged():
            return _state_changed(view, fact)
        case f.Resized():
            return replace(
                view,
                min_workers=fact.min_workers or view.min_workers,
                max_workers=fact.max_workers or view.max_workers,
                placed_workers=fact.workers or view.placed_workers,
            )
        case f.PriorityChanged(priority=priority):
            return replace(view, priority=priority)
        case f.FailureCounted():
            return replace(view, failures=view.failures + 1)
        case f.Closed(outcome=outcome):
            return _workers(view, lambda w: replace(w, state="done") if w.state in _LIVE else w) if outcome else view
        case f.PlanSeen() | f.PlanMeasured() | f.SumsChosen():
            return _plan(view, fact)
        case f.SchemeChanged() | f.CompressionAdvised():
            return _compression(view, fact)
        case (
            f.GenerationOpened()
            | f.GenerationFormed()
            | f.GenerationBroken()
            | f.MemberLost()
            | f.WorkerStarted()
            | f.WorkerExited()
            | f.WorkerTrouble()
            | f.StepSeen()
        ):
            return _membership(view, fact)
        case _:
            assert_never(fact)


_LIVE = frozenset({"starting", "running", "waiting", "hung"})
_STOPPED = frozenset({"queued", "paused", "succeeded", "failed", "cancelled"})


def _state_changed(view: JobView, fact: f.StateChanged) -> JobView:
    view = replace(
        view,
        state=fact.state,
        reason=fact.reason,
        message=fact.message,
        category=fact.category or view.category,
        attempt=fact.attempt or view.attempt,
        generation=max(view.generation, fact.generation),
        placed_workers=0 if fact.state in _STOPPED else fact.workers or view.placed_workers,
        nodes=() if fact.state in _STOPPED else fact.nodes or view.nodes,
        preemptions=view.preemptions + (fact.state == "queued" and view.state == "preempting"),
        started_ms=view.started_ms or (fact.at_ms if fact.state == "running" else 0),
        finished_ms=fact.at_ms if fact.state in ENDED else 0,
    )
    if fact.state in _STOPPED:
        view = _workers(view, lambda w: replace(w, state="done") if w.state in _LIVE else w)
    return view


def _membership(
    view: JobView,
    fact: f.GenerationOpened
    | f.GenerationFormed
    | f.GenerationBroken
    | f.MemberLost
    | f.WorkerStarted
    | f.WorkerExited
    | f.WorkerTrouble
    | f.StepSeen,
) -> JobView:
    match fact:
        case f.GenerationOpened(number=number):
            return _generation(view, number, lambda g: replace(g, opened_ms=fact.at_ms, attempt=fact.attempt))
        case f.GenerationFormed():
            return _formed(view, fact)
        case f.GenerationBroken(number=number):
            cause = fact.category or fact.cause
            counts = dict(view.restarts)
            counts[cause] = counts.get(cause, 0) + 1
            view = replace(view, restarts=tuple(sorted(counts.items()))[:32])
            view = _workers(view, lambda w: replace(w, state="waiting") if w.state in ("running", "hung") else w)
            return _generation(
                view,
                number,
                lambda g: replace(
                    g,
                    broken_ms=fact.at_ms,
                    lost_ms=g.lost_ms or fact.at_ms,
                    cause=fact.cause,
                    category=fact.category,
                    worker=fact.worker or g.worker,
                    message=fact.message,
                ),
            )
        case f.MemberLost(generation=number, workers=gone):
            # One that was seen to fail has said more than that it is gone.
            view = _workers(
                view,
                lambda w: (
                    replace(w, state="lost", message=fact.cause) if w.worker in gone and w.state != "failed" else w
                ),
            )
            lost = fact.at_ms
            return _generation(
                view,
                number,
                lambda g: replace(g, lost_ms=g.lost_ms or lost, worker=g.worker or (gone[0] if gone else "")),
            )
        case f.WorkerStarted():
            started = WorkerRow(
                worker=fact.worker,
                node=fact.node,
                rank=fact.rank,
                pid=fact.pid,
                state="running" if fact.generation >= view.generation > 0 else "starting",
                start=fact.start,
                started_ms=fact.at_ms,
                message=fact.why_cold,
            )
            others = tuple(w for w in view.workers if w.worker != fact.worker)
            return replace(view, workers=_by_rank((*others, started)))
        case f.WorkerExited(worker=worker, generation=number):
            clean = fact.code == 0 and fact.signal == 0 and not fact.category
            state = "exited" if clean or fact.expected else "failed"
            view = _workers(view, lambda w: replace(w, state=state, message=fact.message) if w.worker == worker else w)
            if clean or fact.expected:
                return view
            return _generation(
                view,
                number,
                lambda g: replace(
                    g,
                    lost_ms=g.lost_ms or fact.at_ms,
                    last_step=max(g.last_step, fact.last_step),
                    worker=g.worker or worker,
                ),
            )
        case f.WorkerTrouble(worker=worker, what=what):
            state = "hung" if what == "hang" else "running"
            return _workers(view, lambda w: replace(w, state=state, message=what) if w.worker == worker else w)
        case f.StepSeen(generation=number, step=step):
            return _generation(
                view,
                number,
                lambda g: replace(
                    g,
                    last_step=max(g.last_step, step),
                    first_recorded_step=step if g.first_recorded_step < 0 else g.first_recorded_step,
                ),
            )
        case _:
            assert_never(fact)


def _formed(view: JobView, fact: f.GenerationFormed) -> JobView:
    known = {w.worker: w for w in view.workers}
    rows = tuple(
        replace(
            known.get(m.worker, WorkerRow(worker=m.worker)),
            node=m.node,
            rank=m.rank,
            state="running",
            message="",
        )
        for m in fact.members[:MAX_WORKERS]
    )
    view = replace(
        view,
        workers=_by_rank(rows),
        generation=max(view.generation, fact.number),
        world_size=fact.world_size,
        mesh=fact.mesh,
    )
    return _generation(view, fact.number, lambda g: replace(g, formed_ms=fact.at_ms, world_size=fact.world_size))


def _by_rank(rows: tuple[WorkerRow, ...]) -> tuple[WorkerRow, ...]:
    return tuple(sorted(rows, key=lambda w: (w.rank, w.worker)))[:MAX_WORKERS]


def _workers(view: JobView, change: Callable[[WorkerRow], WorkerRow]) -> JobView:
    return replace(view, workers=tuple(change(w) for w in view.workers))


def _generation(view: JobView, number: int, change: Callable[[GenerationRow], GenerationRow]) -> JobView:
    if not any(g.number == number for g in view.generations):
        rows = sorted((*view.generations, GenerationRow(number=number)), key=lambda g: g.number)
        view = replace(view, generations=tuple(rows[-MAX_GENERATIONS:]))
    return replace(view, generations=tuple(change(g) if g.number == number else g for g in view.generations))


def _plan(view: JobView, fact: f.PlanSeen | f.PlanMeasured | f.SumsChosen) -> JobView:
    known = next((p for p in view.plans if p.generation == fact.generation), PlanRow(generation=fact.generation))
    match fact:
        case f.PlanSeen():
            row = replace(
                known,
                at_ms=fact.at_ms,
                plan=fact.plan,
                predicted_s=fact.step_seconds,
                predicted_bytes=fact.peak_bytes,
            )
        case f.PlanMeasured():
            row = replace(
                known,
                measured_s=fact.step_seconds,
                measured_bytes=fact.peak_bytes,
                steps=fact.steps,
                verdict=fact.verdict,
                message=fact.message,
            )
        case f.SumsChosen():
            row = replace(known, sums=fact.sums)
    others = [p for p in view.plans if p.generation != fact.generation]
    rows = sorted((*others, row), key=lambda p: p.generation)
    return replace(view, plans=tuple(rows[-MAX_PLANS:]))


def _compression(view: JobView, fact: f.SchemeChanged | f.CompressionAdvised) -> JobView:
    match fact:
        case f.SchemeChanged():
            row = row_of(fact)
            held = hold(view.holding, row)
            return replace(view, schemes=with_change(view.schemes, row), held=held)
        case f.CompressionAdvised():
            advice = AdviceRow(
                generation=fact.generation,
                step=fact.step,
                step_s=fact.step_s,
                exposed_s=fact.exposed_s,
                predicted_s=fact.predicted_s,
                faster=fact.faster,
                schemes=fact.schemes,
            )
            return replace(view, advice=advice)


def _checkpoint(view: JobView, fact: f.SaveSeen | f.CheckpointMarked) -> JobView:
    if isinstance(fact, f.CheckpointMarked):
        verified = fact.state == "verified"
        return replace(
            view,
            checkpoints=tuple(
                c
                if c.step != fact.step or c.manifest_hash != fact.manifest_hash
                else replace(c, verified=True)
                if verified
                else replace(c, state=fact.state, message=fact.message)
                for c in view.checkpoints
            ),
        )
    row = CheckpointRow(
        save_id=fact.save_id,
        step=fact.step,
        generation=fact.generation,
        state=fact.state,
        at_ms=fact.at_ms,
        manifest_hash=fact.manifest_hash,
        bytes_total=fact.bytes_total,
        bytes_written=fact.bytes_written,
        bytes_reused=fact.bytes_reused,
        save_s=fact.save_s,
        message=fact.message,
    )
    others = view.checkpoints
    if others and others[-1].save_id == fact.save_id:
        others = others[:-1]
    elif fact.state != "saving":
        # A save that begins is a new one: only its end may find it among older ones.
        others = tuple(c for c in others if c.save_id != fact.save_id)
    rows = (*others, row)[-MAX_CHECKPOINTS:]
    if fact.state != "committed":
        return replace(view, checkpoints=rows)
    return replace(
        view,
        checkpoints=rows,
        checkpoints_committed=view.checkpoints_committed + 1,
        last_checkpoint_step=fact.step,
    )
