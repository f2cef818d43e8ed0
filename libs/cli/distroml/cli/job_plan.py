"""A job's plan for `job explain` and `events`: why it was chosen and what not, what was predicted and measured."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import job_compression, output
from distroml.cli.client import Plane
from distroml.cli.errors import CliError
from distroml.objectstore import ObjectStore, ObjectStoreError
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


async def summary(plane: Plane, job: str) -> t.JobSummary:
    """What telemetry knows of a job, its plans and schemes among it; empty where telemetry cannot say."""
    with contextlib.suppress(RemoteError):
        return await plane.telemetry.GetJobSummary(t.GetJobSummaryRequest(job=job))
    return t.JobSummary(job=job)


def lines(plan: t.JobPlan, *, others: bool = True) -> Iterator[str]:
    """A plan in lines of text; `others` has the best few that were not chosen."""
    yield f"plan of generation {plan.generation}: {plan.plan or 'one that this release cannot read'}"
    for reason in plan.reasons:
        yield f"  - {reason}"
    if plan.binding:
        yield f"  what binds: {plan.binding}"
    if plan.sums:
        yield f"  sums of gradients: {plan.sums}"
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
    for other in plan.others[:MAX_OTHERS] if others else ():
        cost = output.short_time(other.step_seconds) if other.step_seconds else "not possible"
        yield f"  instead of {other.plan} ({cost}): {other.reason}"


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that was not chosen, as a job keeps it; `prediction` is None where it is not possible."""

    plan: str = ""
    prediction: dict[str, Any] | None = None
    reason: str = ""

    def lines(self) -> Iterator[str]:
        """The plan and its costs on one line, why it was not chosen on the next."""
        found = self.prediction or {}
        step_s, peak = found.get("step_seconds"), found.get("peak_bytes_per_rank")
        costs = [output.short_time(step_s)] if isinstance(step_s, int | float) else []
        costs += [output.binary_size(peak)] if isinstance(peak, int | float) else []
        yield f"  - {', '.join(costs) or 'not possible'}: {self.plan}"
        if self.reason:
            yield f"    {self.reason}"


def others(store: ObjectStore, plan: t.JobPlan) -> list[Other]:
    """Every plan that the job chose among, as its object `plans/<hash>.json` keeps them; none where none was kept.

    Raises:
        CliError: the object is gone, damaged, or of another release.
    """
    if not plan.alternatives_hash:
        return []
    key = f"plans/{plan.alternatives_hash}.json"
    try:
        body = store.get(key)
    except ObjectStoreError as error:
        hint = "is this the data folder of the control plane that ran the job?"
        raise CliError(f"the plans that the job chose among cannot be read: {error}", hint=hint) from error
    if hashlib.sha256(body).hexdigest() != plan.alternatives_hash:
        raise CliError(f"the object {key} is damaged: its content does not have its hash")
    try:
        return msgspec.json.decode(body, type=list[Other])
    except msgspec.MsgspecError as error:
        raise CliError(f"the object {key} is of another release: {error}") from error


def event_words(type_: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of an event about plans or compression in few words; of any other event as it is."""
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
        case "rendezvous.plan.LinksProbed":
            levels = _object(body.get("topology")).get("levels")
            return {
                "generation": body.get("generation", 0),
                "levels": levels if isinstance(levels, list) else [],
                "took": output.short_time(float(body.get("seconds") or 0)) if body.get("seconds") else "",
                "reused": "yes" if body.get("reused") else "",
                "sums": str(_object(body.get("sums")).get("choice", "")),
            }
        case _:
            return job_compression.event_words(type_, body)


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
