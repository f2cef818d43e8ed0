"""What follows from a job's view and its samples: rates, the estimated end, recoveries, marks for the chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distroml.telemetry.domain.rows import AdviceRow
from distroml.telemetry.domain.schemes import buckets_text, numbers_of, of_places, scheme_changes
from distroml.telemetry.domain.view import JobView

WINDOW_MS = 30_000
SLOWEST_STEPS = 5
STALL_MS = 10_000
_FURTHEST_MS = 10_000 * 365 * 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """One step of the lead rank as the window needs it; `step_s` seconds, global counts."""

    step: int
    at_ms: int
    step_s: float
    tokens: float = 0
    samples: float = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second over the recent window; all 0 where nothing can be said."""

    steps_per_s: float = 0.0
    tokens_per_s: float = 0.0
    samples_per_s: float = 0.0
    step_s: float = 0.0


def rates(points: Sequence[StepPoint], window_ms: int = WINDOW_MS) -> Rates:
    """Throughput over the newest `window_ms`, pauses between steps included.

    Args:
        points: ascending, of one generation: the pause of a recovery is no throughput.
        window_ms: how far back to look; at least the two newest points count however old they are.
    """
    if not points:
        return Rates()
    end = points[-1].at_ms
    recent = [p for p in points if p.at_ms >= end - window_ms] if len(points) > 2 else list(points)
    if len(recent) < 2:
        recent = list(points[-2:])
    mean_step_s = sum(p.step_s for p in recent) / len(recent)
    span_s = (end - recent[0].at_ms) / 1000
    counted = recent[1:]
    if span_s <= 0 or not counted:
        span_s, counted = sum(p.step_s for p in recent), recent
    if span_s <= 0:
        return Rates(step_s=mean_step_s)
    return Rates(
        steps_per_s=len(counted) / span_s,
        tokens_per_s=sum(p.tokens for p in counted) / span_s,
        samples_per_s=sum(p.samples for p in counted) / span_s,
        step_s=mean_step_s,
    )


def eta_ms(step: int, total_steps: int, at_ms: int, steps_per_s: float) -> int:
    """When the last step will end, Unix milliseconds; 0 where no estimate can be made."""
    if total_steps <= 0 or steps_per_s <= 0 or at_ms <= 0:
        return 0
    left_ms = 1000 * max(0, total_steps - step) / steps_per_s
    # A script that shall not end is given steps for longer than any calendar, or database, has numbers.
    return at_ms + int(left_ms) if left_ms <= _FURTHEST_MS else 0


def stalled(now_ms: int, last_at_ms: int, step_s: float) -> bool:
    """No step for so long that the last rates say nothing about now."""
    return now_ms - last_at_ms > max(STALL_MS, int(1000 * SLOWEST_STEPS * step_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSamples:
    """The first and newest step sample of one generation."""

    first_step: int
    first_at_ms: int
    last_step: int
    last_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRow:
    """From the loss of a worker to the end of the first optimizer step of the next generation that made one."""

    generation: int
    lost_at_ms: int
    formed_at_ms: int
    first_step_at_ms: int
    cause: str
    worker: str
    resumed_from_step: int
    category: str


def recoveries(view: JobView, samples: Mapping[int, GenerationSamples]) -> tuple[RecoveryRow, ...]:
    """Every failed generation with the one that took over; times are 0 until they come.

    A generation that broke before its first step does not end the recovery: the next one takes over from the
    first loss.
    """
    found: list[RecoveryRow] = []
    pending: RecoveryRow | None = None
    for row in view.generations:
        if pending is not None and row.formed_ms:
            first = samples.get(row.number)
            resumed = first.first_step - 1 if first else row.first_recorded_step if row.first_recorded_step >= 0 else 0
            pending = RecoveryRow(
                generation=row.number,
                lost_at_ms=pending.lost_at_ms,
                formed_at_ms=row.formed_ms,
                first_step_at_ms=first.first_at_ms if first else 0,
                cause=pending.cause,
                worker=pending.worker,
                resumed_from_step=resumed,
                category=pending.category,
            )
            if first is not None or not row.failed:
                found.append(pending)
                pending = None
        if row.failed and pending is None:
            pending = RecoveryRow(
                generation=0,
                lost_at_ms=row.lost_ms,
                formed_at_ms=0,
                first_step_at_ms=0,
                cause=row.message or row.cause,
                worker=row.worker,
                resumed_from_step=0,
                category=row.category,
            )
    if pending is not None and not view.ended:
        found.append(pending)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened at a step: `kind` is `checkpoint`, `failure`, `generation` or `scheme`."""

    kind: str
    step: int
    at_ms: int
    text: str


def marks(view: JobView, samples: Mapping[int, GenerationSamples]) -> tuple[Mark, ...]:
    """Marks on the step axis, in order of time. The very first generation is no mark: every job has one."""
    result: list[Mark] = []
    first = True
    for row in view.generations:
        seen = samples.get(row.number)
        if row.formed_ms:
            step = seen.first_step if seen else max(0, row.first_recorded_step)
            if not first:
                text = f"generation {row.number}: {row.world_size} workers from step {step}"
                result.append(Mark(kind="generation", step=step, at_ms=row.formed_ms, text=text))
            first = False
        if row.failed:
            step = max(seen.last_step if seen else 0, row.last_step)
            what = row.category.replace("_", " ") or row.cause
            text = f"{row.worker or 'a worker'} failed ({what}) after step {step}"
            result.append(Mark(kind="failure", step=step, at_ms=row.lost_ms or row.broken_ms, text=text))
    for saved in view.checkpoints:
        if saved.state != "saving" and saved.state != "failed":
            text = f"checkpoint of step {saved.step}" + ("" if saved.state == "committed" else f" ({saved.state})")
            result.append(Mark(kind="checkpoint", step=saved.step, at_ms=saved.at_ms, text=text))
    for (_, step, place), rows in scheme_changes(view.schemes).items():
        moves = dict.fromkeys(f"{row.from_scheme} → {row.to_scheme}" for row in rows)
        text = of_places([place], f"{buckets_text(numbers_of(rows))} from step {step}: {', '.join(moves)}")
        result.append(Mark(kind="scheme", step=step, at_ms=rows[0].at_ms, text=text))
    return tuple(sorted(result, key=lambda m: (m.at_ms, m.step)))


def current_advice(view: JobView) -> AdviceRow | None:
    """What compression would gain the newest generation, where that was told."""
    return view.advice if view.advice is not None and view.advice.generation >= view.generation else None
