"""What follows from an agent's report about a worker or a generation.

Reports come at least once and late: each has a mark in the state, and what is not newer than its mark is old news.
A report about an older generation is recorded and changes nothing else.
"""

from __future__ import annotations

from typing import assert_never

from distroml.events import Rejection
from distroml.rendezvous.domain import commands as cmd
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.draft import Draft
from distroml.rendezvous.domain.model import (
    MAX_WORKERS,
    Cause,
    FailureCategory,
    Mark,
    Outcome,
    finished,
    scheme_key,
    scheme_mark,
    scheme_marks,
)

MAX_MESSAGE_BYTES = 4_000
MAX_TRACEBACK_BYTES = 32_000
MAX_PLAN_BYTES = 60_000
"""For all texts of a plan, of its measurement or of a probe together, so that the event stays below 64 KiB."""
MAX_BUCKETS = 8192
"""Of one report."""
MAX_BUCKET = 1 << 20

_INDICES = frozenset(str(index) for index in range(MAX_WORKERS))


def decide_report(draft: Draft, report: cmd.Report) -> None:
    """Record `report`, and what follows from it."""
    if report.generation > draft.state.number or report.generation < 1:
        raise Rejection(
            "UnknownGeneration",
            f"generation {report.generation} was never opened; the newest is {draft.state.number}",
            newest=str(draft.state.number),
        )
    if isinstance(report, cmd.GenerationSaid):
        _generation_said(draft, report)
    else:
        _worker_said(draft, report)


def _generation_said(draft: Draft, report: cmd.GenerationSaid) -> None:
    match report:
        case cmd.ReportPlan():
            _plan(draft, report)
        case cmd.ReportMeasured():
            _measured(draft, report)
        case cmd.ReportLinks():
            _links(draft, report)
        case cmd.ReportScheme():
            _scheme(draft, report)
        case cmd.ReportAdvice():
            _advice(draft, report)
        case cmd.ReportStep():
            _step(draft, report)
        case _:
            assert_never(report)


def _worker_said(draft: Draft, report: cmd.WorkerSaid) -> None:
    place = f"{draft.state.job}.{draft.state.attempt}.{report.sender.node}"
    if not is_place(report.worker, place):
        raise Rejection(
            "UnknownWorker",
            f"node {report.sender.node} has no worker {clip(report.worker, 200)!r}; its workers are {place}.0, …",
            node=report.sender.node,
        )
    match report:
        case cmd.ReportStart():
            _start(draft, report)
        case cmd.ReportExit():
            _exit(draft, report)
        case cmd.ReportHang():
            _hang(draft, report)
        case cmd.ReportNonFinite():
            _non_finite(draft, report)
        case _:
            assert_never(report)


def is_place(worker: str, node: str) -> bool:
    """Whether `worker` is one of a node's ids `<job>.<attempt>.<node>.<index>`, of which there are `MAX_WORKERS`."""
    prefix, _, index = worker.rpartition(".")
    return prefix == node and index in _INDICES


def clip(text: str, limit_bytes: int) -> str:
    """`text` cut in the middle to at most `limit_bytes` of UTF-8: both ends of a traceback say something."""
    raw = text.encode()
    if len(raw) <= limit_bytes:
        return text
    mark = "\n…\n"
    half = (limit_bytes - len(mark.encode())) // 2
    return raw[:half].decode(errors="ignore") + mark + raw[-half:].decode(errors="ignore")


def _known(draft: Draft, key: str, mark: Mark) -> bool:
    return draft.state.marks.get(key, (0, -1)) >= mark


def _start(draft: Draft, c: cmd.ReportStart) -> None:
    if _known(draft, f"started/{c.worker}", (c.generation, 0)):
        return
    draft.add(
        ev.WorkerStarted(
            at_ms=c.at_ms,
            worker=c.worker,
            generation=c.generation,
            rank=draft.state.rank(c.worker, c.generation),
            pid=c.pid,
            start=clip(c.start, MAX_MESSAGE_BYTES),
            node=c.sender.node,
            seconds=c.seconds,
            why_cold=clip(c.why_cold, MAX_MESSAGE_BYTES),
        )
    )


def _exit(draft: Draft, c: cmd.ReportExit) -> None:
    if _known(draft, f"exited/{c.worker}", (c.generation, 0)):
        return
    state = draft.state
    message = clip(c.message, MAX_MESSAGE_BYTES)
    draft.add(
        ev.WorkerExited(
            at_ms=c.at_ms,
            worker=c.worker,
            generation=c.generation,
            rank=state.rank(c.worker, c.generation),
            code=c.code,
            signal=c.signal,
            category=c.category,
            message=message,
            last_step=c.last_step,
            expected=c.expected,
            traceback=clip(c.traceback, MAX_TRACEBACK_BYTES),
        )
    )
    formed = state.current
    if formed is None or formed.number != c.generation or formed.member(c.worker) is None or c.expected:
        return
    if finished(c.code, c.signal, c.category):
        if len(draft.state.finished) == formed.world_size:
            draft.close(Outcome.SUCCEEDED)
        return
    if not state.stopping:
        text = message or (f"signal {c.signal}" if c.signal else f"exit code {c.code}")
        _lose(draft, c.sender.node, c.worker, Cause.WORKER_EXITED, c.category, text)


def _hang(draft: Draft, c: cmd.ReportHang) -> None:
    if _known(draft, f"hang/{c.worker}", (c.generation, c.last_step)):
        return
    state = draft.state
    draft.add(
        ev.HangDetected(
            at_ms=c.at_ms,
            worker=c.worker,
            generation=c.generation,
            rank=state.rank(c.worker, c.generation),
            silent_s=c.silent_s,
            last_step=c.last_step,
        )
    )
    formed = state.current
    if formed is None or formed.number != c.generation or formed.member(c.worker) is None or state.stopping:
        return
    text = f"no sign of progress for {c.silent_s:g} s after step {c.last_step}"
    _lose(draft, c.sender.node, c.worker, Cause.WORKER_HANGS, FailureCategory.HANG, text)


def _lose(draft: Draft, node: str, worker: str, cause: str, category: FailureCategory, message: str) -> None:
    generation = draft.state.number
    draft.add(ev.MemberLost(at_ms=draft.at_ms, generation=generation, node=node, workers=(worker,), cause=cause))
    # Workers that leave a draining generation at different steps may trip over one another.
    counted = draft.state.drain is None
    draft.break_up(cause, worker=worker, category=category, message=message, counted=counted)


def _non_finite(draft: Draft, c: cmd.ReportNonFinite) -> None:
    if _known(draft, f"nonfinite/{c.worker}", (c.generation, c.step)):
        return
    draft.add(
        ev.NonFiniteDetected(
            at_ms=c.at_ms,
            worker=c.worker,
            generation=c.generation,
            rank=draft.state.rank(c.worker, c.generation),
            step=c.step,
            what=clip(c.what, MAX_MESSAGE_BYTES),
        )
    )


def _plan(draft: Draft, c: cmd.ReportPlan) -> None:
    if _known(draft, "plan", (c.generation, 0)):
        return
    _check_size("the plan", c.plan, c.inputs, c.prediction, c.best, c.alternatives_hash)
    draft.add(
        ev.PlanChosen(
            at_ms=c.at_ms,
            generation=c.generation,
            plan=c.plan,
            inputs=c.inputs,
            prediction=c.prediction,
            best=c.best,
            alternatives_hash=c.alternatives_hash,
        )
    )


def _measured(draft: Draft, c: cmd.ReportMeasured) -> None:
    if _known(draft, "measured", (c.generation, c.steps)):
        return
    _check_size("the measurement", c.parts)
    draft.add(
        ev.PlanMeasured(
            at_ms=c.at_ms,
            generation=c.generation,
            steps=c.steps,
            step_seconds=c.step_seconds,
            peak_bytes_per_rank=c.peak_bytes_per_rank,
            predicted_step_seconds=c.predicted_step_seconds,
            predicted_peak_bytes_per_rank=c.predicted_peak_bytes_per_rank,
            parts=c.parts,
            verdict=clip(c.verdict, 200),
            message=clip(c.message, MAX_MESSAGE_BYTES),
        )
    )


def _links(draft: Draft, c: cmd.ReportLinks) -> None:
    if _known(draft, "links", (c.generation, 0)):
        return
    _check_size("the topology and the choice of sums", c.topology, c.sums)
    draft.add(
        ev.LinksProbed(
            at_ms=c.at_ms,
            generation=c.generation,
            topology=c.topology,
            seconds=c.seconds,
            reused=c.reused,
            sums=c.sums,
        )
    )


def _scheme(draft: Draft, c: cmd.ReportScheme) -> None:
    first, last, place = c.buckets[0], c.buckets[-1], clip(c.place, 200)
    if len(c.buckets) > MAX_BUCKETS or first < 0 or last > MAX_BUCKET:
        raise Rejection(
            "TooLarge",
            f"{len(c.buckets)} buckets from {first} to {last}; at most {MAX_BUCKETS} of 0 to {MAX_BUCKET} are recorded",
        )
    marks, key = scheme_marks(draft.state.marks), scheme_key(place)
    newest = max((mark[0] for mark in marks.values()), default=0)
    if c.generation < newest or _known(draft, key, scheme_mark(c.generation, c.from_step, first)):
        return
    if key not in marks and len(marks) >= MAX_WORKERS and c.generation == newest:
        raise Rejection("TooLarge", f"{len(marks)} parts of a model; a generation has at most {MAX_WORKERS} workers")
    draft.add(
        ev.SchemeChanged(
            at_ms=c.at_ms,
            generation=c.generation,
            bucket=first,
            buckets=c.buckets,
            place=place,
            from_scheme=clip(c.from_scheme, 200),
            to_scheme=clip(c.to_scheme, 200),
            reason=clip(c.reason, 200),
            why=clip(c.why, MAX_MESSAGE_BYTES),
            from_step=c.from_step,
        )
    )


def _advice(draft: Draft, c: cmd.ReportAdvice) -> None:
    if _known(draft, "advice", (c.generation, 0)):
        return
    draft.add(
        ev.CompressionAdvised(
            at_ms=c.at_ms,
            generation=c.generation,
            step=c.step,
            step_seconds=c.step_seconds,
            exposed_seconds=c.exposed_seconds,
            predicted_step_seconds=c.predicted_step_seconds,
            faster=c.faster,
            schemes=clip(c.schemes, MAX_MESSAGE_BYTES),
        )
    )


def _check_size(what: str, *texts: str) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_PLAN_BYTES:
        raise Rejection("TooLarge", f"{what} has {size} bytes of text; at most {MAX_PLAN_BYTES} are recorded")


def _step(draft: Draft, c: cmd.ReportStep) -> None:
    mark = (c.generation, c.step)
    same = draft.state.marks.get("step") == mark and c.why not in draft.state.step_whys
    if _known(draft, "step", mark) and not (same and len(draft.state.step_whys) < 4):
        return
    draft.add(
        ev.StepRecorded(
            at_ms=c.at_ms,
            generation=c.generation,
            step=c.step,
            sample_from=c.sample_from,
            sample_to=c.sample_to,
            epoch=c.epoch,
            loss=c.loss,
            fingerprint=clip(c.fingerprint, 200),
            why=clip(c.why, 200),
        )
    )
