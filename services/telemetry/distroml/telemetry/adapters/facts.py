"""Public events of the other services to telemetry's facts: the one table of what telemetry understands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from google.protobuf.message import Message

from distroml.api.checkpoint.v1 import checkpoint_pb2 as c
from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.rendezvous.v1 import rendezvous_pb2 as r
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.scheduler.v1.jobs_pb2 import Placement
from distroml.observability import trace
from distroml.rpc.publicevents import message_class
from distroml.telemetry.domain import facts as f

M = TypeVar("M", bound=Message)


def job_of(stream: str) -> str:
    """The job that a stream is about, or empty."""
    service, _, rest = stream.partition("/")
    kind, _, job = rest.partition("/")
    return job if kind == "job" and service in ("scheduler", "rendezvous", "checkpoint") else ""


def fact_of(message: Message) -> f.JobFact | None:
    """What `message` means for its job; None where telemetry shows the event only as text."""
    translate = _TABLE.get(type(message))
    return None if translate is None else translate(message)


@cache
def reader_of(type_: str) -> Callable[[bytes], f.JobFact | None]:
    """Reads stored bytes of a type of events as `fact_of` does; raises `UnknownEvent` for a type that is not known.

    What it returns raises `DecodeError`; events that mean nothing for a job it does not look at.
    """
    kind = message_class(type_)
    translate, parse = _TABLE.get(kind), kind.FromString
    return (lambda data: None) if translate is None else (lambda data: translate(parse(data)))


def _category(value: FailureCategory.ValueType) -> str:
    if value == FailureCategory.FAILURE_CATEGORY_UNSPECIFIED:
        return ""
    # A newer release may know more categories than this one.
    if value not in FailureCategory.values():
        return f"category_{value}"
    return FailureCategory.Name(value).removeprefix("FAILURE_CATEGORY_").lower()


def _slots(placement: Sequence[Placement]) -> int:
    return sum(len(p.slots) for p in placement)


def _nodes(placement: Sequence[Placement]) -> tuple[str, ...]:
    return tuple(p.node for p in placement)[:64]


def _state(name: str) -> Callable[[Message], f.JobFact]:
    def changed(m: Message) -> f.JobFact:
        at: int = getattr(m, "at_ms", 0)
        return f.StateChanged(
            at_ms=at,
            state=name,
            reason=getattr(m, "reason", ""),
            message=getattr(m, "message", "") or getattr(m, "why", ""),
            category=_category(getattr(m, "category", FailureCategory.FAILURE_CATEGORY_UNSPECIFIED)),
        )

    return changed


def _submitted(m: s.JobSubmitted) -> f.JobFact:
    spec, context = m.spec, trace.parse(m.traceparent)
    return f.Submitted(
        at_ms=m.at_ms,
        name=spec.name or m.job,
        project=spec.project,
        command=tuple(spec.command)[:64],
        min_workers=spec.workers.min,
        max_workers=spec.workers.max,
        priority=spec.priority,
        compress=spec.compress,
        trace_id=context.trace_id if context else "",
    )


def _attempt(m: s.JobAdmitted | s.JobAttemptStarted) -> f.JobFact:
    return f.StateChanged(
        at_ms=m.at_ms,
        state="admitted",
        attempt=m.attempt,
        workers=_slots(m.placement),
        nodes=_nodes(m.placement),
    )


def _formed(m: r.GenerationFormed) -> f.JobFact:
    g = m.generation
    return f.GenerationFormed(
        at_ms=g.at_ms,
        number=g.number,
        world_size=g.world_size,
        members=tuple(
            f.MemberRow(worker=p.worker, node=p.node, rank=p.rank, local_rank=p.local_rank) for p in g.members
        ),
        mesh=tuple(sorted(g.mesh.items())),
    )


def _broken(m: r.GenerationBroken) -> f.JobFact:
    return f.GenerationBroken(
        at_ms=m.at_ms,
        number=m.number,
        cause=m.cause,
        worker=m.worker,
        rank=m.rank,
        category=_category(m.category),
        message=m.message,
    )


def _exited(m: r.WorkerExited) -> f.JobFact:
    return f.WorkerExited(
        at_ms=m.at_ms,
        worker=m.worker,
        generation=m.generation,
        rank=m.rank,
        code=m.code,
        signal=m.signal,
        category=_category(m.category),
        message=m.message,
        last_step=m.last_step,
        expected=m.expected,
    )


def _started(m: r.WorkerStarted) -> f.JobFact:
    return f.WorkerStarted(
        at_ms=m.at_ms,
        worker=m.worker,
        generation=m.generation,
        rank=m.rank,
        pid=m.pid,
        node=m.node,
        start=m.start,
        seconds=m.seconds,
        why_cold=m.why_cold,
    )


def _lost(m: r.MemberLost) -> f.JobFact:
    return f.MemberLost(
        at_ms=m.at_ms, generation=m.generation, node=m.node, workers=tuple(m.workers)[:1024], cause=m.cause
    )


def _plan(m: r.PlanChosen) -> f.JobFact:
    # Plans are few, and what reads them takes a third of a second to import: a process that makes history anew begins
    # without it.
    from distroml.telemetry.adapters.plans import read_chosen

    chosen = read_chosen(m.plan, m.prediction, m.best)
    return f.PlanSeen(
        at_ms=m.at_ms,
        generation=m.generation,
        plan=chosen.text,
        step_seconds=chosen.prediction.step_seconds,
        peak_bytes=int(chosen.prediction.peak_bytes_per_rank),
        mfu=chosen.prediction.mfu or 0.0,
    )


def _sums(m: r.LinksProbed) -> f.JobFact:
    from distroml.telemetry.adapters.plans import read_sums

    return f.SumsChosen(at_ms=m.at_ms, generation=m.generation, sums=read_sums(m.sums))


def _begun(m: c.Begun) -> f.JobFact:
    return f.SaveSeen(at_ms=m.at_ms, save_id=m.save_id, step=m.step, generation=m.generation, state="saving")


def _committed(m: c.Committed) -> f.JobFact:
    return f.SaveSeen(
        at_ms=m.at_ms,
        save_id=m.save_id,
        step=m.step,
        generation=m.generation,
        state="committed",
        manifest_hash=m.manifest_hash,
        bytes_total=m.bytes_total,
        bytes_written=m.bytes_written,
        bytes_reused=m.bytes_reused,
        save_s=m.save_s,
    )


def _save_failed(m: c.SaveFailed) -> f.JobFact:
    return f.SaveSeen(
        at_ms=m.at_ms,
        save_id=m.save_id,
        step=m.step,
        generation=m.generation,
        state="failed",
        message=m.message,
    )


def _entry(kind: type[M], translate: Callable[[M], f.JobFact]) -> tuple[type[Message], Callable[..., f.JobFact]]:
    return kind, translate


_TABLE: dict[type[Message], Callable[..., f.JobFact]] = dict(
    [
        _entry(s.JobSubmitted, _submitted),
        _entry(s.JobQueued, _state("queued")),
        _entry(s.JobAdmitted, _attempt),
        _entry(s.JobAttemptStarted, _attempt),
        _entry(
            s.JobStarted,
            lambda m: f.StateChanged(at_ms=m.at_ms, state="running", attempt=m.attempt, generation=m.generation),
        ),
        _entry(s.JobProgressed, lambda m: f.Progressed(at_ms=m.at_ms, step=m.step, total_steps=m.total_steps)),
        _entry(s.JobPauseRequested, _state("pausing")),
        _entry(s.JobPaused, _state("paused")),
        _entry(s.JobResumed, _state("queued")),
        _entry(
            s.JobResizeRequested,
            lambda m: f.Resized(at_ms=m.at_ms, min_workers=m.min_workers, max_workers=m.max_workers),
        ),
        _entry(s.JobResized, lambda m: f.Resized(at_ms=m.at_ms, workers=_slots(m.placement))),
        _entry(s.JobPriorityChanged, lambda m: f.PriorityChanged(at_ms=m.at_ms, priority=m.priority)),
        _entry(s.JobPreemptionRequested, _state("preempting")),
        _entry(s.JobPreempted, _state("queued")),
        _entry(s.JobRequeued, _state("queued")),
        _entry(s.JobFailureCounted, lambda m: f.FailureCounted(at_ms=m.at_ms, category=_category(m.category))),
        _entry(s.JobSucceeded, _state("succeeded")),
        _entry(s.JobFailed, _state("failed")),
        _entry(s.JobCancelRequested, _state("cancelling")),
        _entry(s.JobCancelled, _state("cancelled")),
        _entry(
            r.GenerationOpened,
            lambda m: f.GenerationOpened(at_ms=m.at_ms, number=m.number, attempt=m.attempt, reason=m.reason),
        ),
        _entry(r.GenerationFormed, _formed),
        _entry(r.MemberLost, _lost),
        _entry(r.GenerationBroken, _broken),
        _entry(r.Closed, lambda m: f.Closed(at_ms=m.at_ms, outcome=m.outcome)),
        _entry(r.WorkerStarted, _started),
        _entry(r.WorkerExited, _exited),
        _entry(
            r.HangDetected,
            lambda m: f.WorkerTrouble(
                at_ms=m.at_ms,
                worker=m.worker,
                generation=m.generation,
                rank=m.rank,
                what="hang",
                step=m.last_step,
            ),
        ),
        _entry(
            r.NonFiniteDetected,
            lambda m: f.WorkerTrouble(
                at_ms=m.at_ms,
                worker=m.worker,
                generation=m.generation,
                rank=m.rank,
                what=f"{m.what} is not finite at step {m.step}",
                step=m.step,
            ),
        ),
        _entry(r.PlanChosen, _plan),
        _entry(
            r.PlanMeasured,
            lambda m: f.PlanMeasured(
                at_ms=m.at_ms,
                generation=m.generation,
                steps=m.steps,
                step_seconds=m.step_seconds,
                peak_bytes=m.peak_bytes_per_rank,
                verdict=m.verdict,
                message=m.message,
            ),
        ),
        _entry(r.LinksProbed, _sums),
        _entry(
            r.SchemeChanged,
            lambda m: f.SchemeChanged(
                at_ms=m.at_ms,
                generation=m.generation,
                bucket=m.bucket,
                from_scheme=m.from_scheme,
                to_scheme=m.to_scheme,
                reason=m.reason,
                why=m.why,
                from_step=m.from_step,
                buckets=tuple(m.buckets) or (m.bucket,),
                place=m.place,
            ),
        ),
        _entry(
            r.CompressionAdvised,
            lambda m: f.CompressionAdvised(
                at_ms=m.at_ms,
                generation=m.generation,
                step=m.step,
                step_s=m.step_seconds,
                exposed_s=m.exposed_seconds,
                predicted_s=m.predicted_step_seconds,
                faster=m.faster,
                schemes=m.schemes,
            ),
        ),
        _entry(
            r.StepRecorded,
            lambda m: f.StepSeen(at_ms=m.at_ms, generation=m.generation, step=m.step, why=m.why),
        ),
        _entry(c.Begun, _begun),
        _entry(c.Committed, _committed),
        _entry(c.SaveFailed, _save_failed),
        _entry(
            c.Verified,
            lambda m: f.CheckpointMarked(at_ms=m.at_ms, step=m.step, manifest_hash=m.manifest_hash, state="verified"),
        ),
        _entry(
            c.CorruptChunkFound,
            lambda m: f.CheckpointMarked(
                at_ms=m.at_ms,
                step=m.step,
                manifest_hash=m.manifest_hash,
                state="damaged",
                message=m.message,
            ),
        ),
        _entry(
            c.Deleted,
            lambda m: f.CheckpointMarked(
                at_ms=m.at_ms, step=m.step, manifest_hash=m.manifest_hash, state="deleted", message=m.why
            ),
        ),
    ]
)
