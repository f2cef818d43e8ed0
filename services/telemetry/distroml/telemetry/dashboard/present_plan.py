"""A job's plan as the plan panel shows it: predicted, measured and as it runs now, why it was chosen, what else was
possible. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distroml.telemetry.adapters.plans import Alternative, Chosen, binding_text, plan_text
from distroml.telemetry.adapters.summaries import JobDetail, WorkerUse
from distroml.telemetry.dashboard.present import Row, seconds, size
from distroml.telemetry.domain.rows import PlanRow

_TONES = {"AsPredicted": "good", "Slower": "warn", "MoreMemory": "warn", "Faster": "run", "LessMemory": "run"}
_WORDS = {
    "AsPredicted": "as predicted",
    "Slower": "slower than predicted",
    "Faster": "faster than predicted",
    "MoreMemory": "more memory than predicted",
    "LessMemory": "less memory than predicted",
}


def plan(detail: JobDetail, chosen: Chosen | None, use: Mapping[int, WorkerUse]) -> Row:
    """The panel of the newest plan; `known` is False where the job never chose one."""
    rows = detail.view.plans
    if not rows:
        return {"known": False}
    newest = rows[-1]
    told = chosen if chosen is not None and chosen.generation == newest.generation else Chosen()
    verdict = _WORDS.get(newest.verdict, "")
    return {
        "known": True,
        "generation": newest.generation,
        "text": newest.plan or "a plan that this release cannot read",
        "verdict": verdict or ("not measured yet" if newest.predicted_s and not newest.steps else ""),
        "tone": _TONES.get(newest.verdict, "mute"),
        "message": newest.message,
        "sums": newest.sums,
        "binding": binding_text(told.prediction.binding),
        "costs": [_step(newest, detail), _memory(newest, use)],
        "reasons": list(told.reasons),
        "best": [_alternative(one, newest.predicted_s) for one in told.best],
        "earlier": [_earlier(row) for row in reversed(rows[:-1])],
    }


def difference(predicted: float, measured: float) -> str:
    """How far the measurement is off: `+8 %`, `4.1 times`; empty where one of them is not known."""
    if not (predicted > 0 and measured > 0):
        return ""
    ratio = measured / predicted
    return f"{ratio:.3g} times" if ratio >= 3 else f"{100 * (ratio - 1):+.0f} %"


def _step(row: PlanRow, detail: JobDetail) -> Row:
    live = detail.live
    now = live.step_s if live.generation == row.generation and not detail.view.ended else 0.0
    return {
        "key": "step",
        "label": "Step time",
        "predicted": seconds(row.predicted_s) if row.predicted_s else "",
        "measured": seconds(row.measured_s) if row.measured_s else "",
        "sub": f"median of {row.steps:,} steps" if row.measured_s else "",
        "off": difference(row.predicted_s, row.measured_s),
        "now": seconds(now) if now else "",
    }


def _memory(row: PlanRow, use: Mapping[int, WorkerUse]) -> Row:
    now = max((u.gpu_bytes or 0 for u in use.values()), default=0)
    return {
        "key": "memory",
        "label": "Peak memory of a rank",
        "predicted": size(row.predicted_bytes) if row.predicted_bytes else "",
        "measured": size(row.measured_bytes) if row.measured_bytes else "",
        "sub": "the largest of any rank" if row.measured_bytes else "",
        "off": difference(row.predicted_bytes, row.measured_bytes),
        "now": size(now) if now else "",
    }


def _alternative(one: Alternative, chosen_s: float) -> Row:
    prediction = one.prediction
    step_s = prediction.step_seconds if prediction is not None else 0.0
    peak = prediction.peak_bytes_per_rank if prediction is not None else 0.0
    return {
        "plan": plan_text(one.plan),
        "step": seconds(step_s) if step_s else "",
        "off": difference(chosen_s, step_s),
        "memory": size(peak) if peak else "",
        "reason": one.reason,
    }


def _earlier(row: PlanRow) -> Row:
    said: Sequence[str] = (
        f"predicted {seconds(row.predicted_s)}" if row.predicted_s else "",
        f"measured {seconds(row.measured_s)}" if row.measured_s else "",
        _WORDS.get(row.verdict, ""),
    )
    return {"generation": row.generation, "text": row.plan, "said": ", ".join(text for text in said if text)}
