"""A job's plan for `job explain` and `events`: why it was chosen, what was predicted, what was measured."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import output
from distroml.cli.client import Plane
from distroml.planner import Plan, PlanRefused
from distroml.rpc.errors import RemoteError

MAX_OTHERS = 5
_VERDICTS = {
    "AsPredicted": "as predicted",
    "Slower": "slower than predicted",
    "Faster": "faster than predicted",
    "MoreMemory": "more memory than predicted",
    "LessMemory": "less memory than predicted",
}


async def plans(plane: Plane, job: str) -> list[t.JobPlan]:
    """The plans of a job's generations, newest last; none where telemetry cannot say."""
    with contextlib.suppress(RemoteError):
        summary = await plane.telemetry.GetJobSummary(t.GetJobSummaryRequest(job=job))
        return list(summary.plans)
    return []


def lines(plan: t.JobPlan) -> Iterator[str]:
    """A plan in lines of text."""
    yield f"plan of generation {plan.generation}: {plan.plan or 'one that this release cannot read'}"
    for reason in plan.reasons:
        yield f"  - {reason}"
    if plan.binding:
        yield f"  what binds: {plan.binding}"
    yield from _cost(
        "step",
        output.short_time(plan.predicted_step_seconds) if plan.predicted_step_seconds else "",
        output.short_time(plan.step_seconds) if plan.step_seconds else "",
        output.off(plan.predicted_step_seconds, plan.step_seconds),
        f"median of {plan.steps} steps",
        known=plan.steps > 0,
    )
    yield from _cost(
        "memory of a rank",
        output.binary_size(plan.predicted_peak_bytes_per_rank) if plan.predicted_peak_bytes_per_rank else "",
        output.binary_size(plan.peak_bytes_per_rank) if plan.peak_bytes_per_rank else "",
        output.off(plan.predicted_peak_bytes_per_rank, plan.peak_bytes_per_rank),
        "largest peak",
        known=plan.steps > 0,
    )
    if verdict := _VERDICTS.get(plan.verdict):
        yield f"  {verdict}{f': {plan.message}' if plan.message else ''}"
    for other in plan.others[:MAX_OTHERS]:
        cost = output.short_time(other.step_seconds) if other.step_seconds else "not possible"
        yield f"  instead of {other.plan} ({cost}): {other.reason}"


def event_words(type_: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a plan's event in few words; of any other event as it is."""
    match type_:
        case "rendezvous.plan.PlanChosen":
            prediction = _object(body.get("prediction"))
            step_s, peak = prediction.get("step_seconds"), prediction.get("peak_bytes_per_rank")
            costs = [output.short_time(step_s)] if isinstance(step_s, int | float) else []
            costs += [output.binary_size(peak)] if isinstance(peak, int | float) else []
            plan = str(body.get("plan", ""))
            with contextlib.suppress(msgspec.MsgspecError, PlanRefused):
                plan = str(msgspec.json.decode(plan, type=Plan))
            return {"generation": body.get("generation", 0), "plan": plan, "predicted": ",".join(costs)}
        case "rendezvous.plan.PlanMeasured":
            return {
                "generation": body.get("generation", 0),
                "steps": body.get("steps", 0),
                "step": _measured(body, "step_seconds", output.short_time),
                "memory": _measured(body, "peak_bytes_per_rank", output.binary_size),
                "verdict": body.get("verdict", ""),
                "message": body.get("message", ""),
            }
        case _:
            return body


def _measured(body: dict[str, Any], name: str, words: Callable[[float], str]) -> str:
    # 64-bit integers are texts in protobuf's JSON.
    measured, predicted = float(body.get(name) or 0), float(body.get(f"predicted_{name}") or 0)
    off = output.off(predicted, measured)
    return f"{words(measured)}{f' ({off})' if off else ''}" if measured else ""


def _object(text: object) -> dict[str, Any]:
    try:
        found: object = json.loads(text) if isinstance(text, str) and text else {}
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _cost(what: str, predicted: str, measured: str, off: str, how: str, *, known: bool) -> Iterator[str]:
    said = [f"predicted {predicted}"] if predicted else []
    if measured:
        said.append(f"measured {measured} ({', '.join(text for text in (off, how) if text)})")
    elif predicted:
        said.append("not measured" if known else "not measured yet")
    if said:
        yield f"  {what}: {', '.join(said)}"
