"""What a demo run came to, and whether all of it really happened. Pure: from recorded facts to verdicts."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the run left behind.

    Attributes:
        job_state: final state without its prefix.
        events: (type, body) of the job's events in log order; bodies as in the JSON of the contract, where
            64-bit numbers are texts.
        result: what the training script wrote about itself.
        killed_worker: id of the worker that got SIGKILL, its step and the Unix milliseconds of the signal.
        first_loss: training loss of the first step.
        tokens_per_s: median over the run, without start and recovery.
        first_step_after_kill_ms: when the first step of the next generation ended, 0 if none did.
        verified_streams, verified_events, differences: what replay found.
    """

    job: str
    job_state: str
    events: Sequence[tuple[str, Mapping[str, Any]]]
    result: Mapping[str, Any]
    killed_worker: str
    killed_at_step: int
    killed_at_ms: int
    first_loss: float
    tokens_per_s: float
    first_step_after_kill_ms: int
    verified_streams: int
    verified_events: int
    differences: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The demo's `report.json`."""

    job: str
    ok: bool
    checks: Mapping[str, bool]
    steps: int
    world_size: int
    parameters: int
    plan: str
    dataset_fingerprint: str
    first_loss: float
    final_loss: float
    heldout_loss: float
    tokens_per_s: float
    generations: int
    killed_worker: str
    killed_at_step: int
    resumed_from_step: int
    recovery_s: float
    checkpoints_committed: int
    checkpoint_bytes_written: int
    checkpoint_bytes_reused: int
    events: int
    streams_verified: int
    seconds: float
    sample: str
    notes: Sequence[str] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Fields for `report.json`."""
        return asdict(self)


def build(facts: Facts) -> Report:
    """Judge the facts."""
    formed = [body["generation"] for type_, body in facts.events if type_ == "rendezvous.generation.GenerationFormed"]
    committed = [body for type_, body in facts.events if type_ == "checkpoint.Committed"]
    killed_at = _killed_at(facts)
    before, after = _committed(facts.events[:killed_at]), _committed(facts.events[killed_at:])
    resumed = _resumed_from(facts)
    final, heldout = (_number(facts.result.get(key)) for key in ("final_loss", "heldout_loss"))
    sample = str(facts.result.get("sample", ""))
    checks = {
        "job succeeded": facts.job_state == "SUCCEEDED",
        "worker was killed by SIGKILL": killed_at < len(facts.events),
        "a new generation formed": len(formed) >= 2,
        "training resumed from a committed checkpoint": resumed > 0,
        "a step of the new generation was trained": facts.first_step_after_kill_ms > facts.killed_at_ms,
        "the loss fell": final < 0.75 * facts.first_loss,
        "the held-out loss was measured": math.isfinite(heldout) and heldout < facts.first_loss,
        # A save of the broken generation may be committed after its end: only one of the next says that saving works.
        "checkpoints were committed before and after": bool(before) and max(after.values(), default=0) >= 2,
        "text was generated": len(sample.strip()) > 0,
        "the log folds to the stored state": facts.verified_events > 0 and facts.differences == 0,
    }
    return Report(
        job=facts.job,
        ok=all(checks.values()),
        checks=checks,
        steps=int(facts.result.get("steps", 0)),
        world_size=int(facts.result.get("world_size", 0)),
        parameters=int(facts.result.get("parameters", 0)),
        plan=_plan(facts),
        dataset_fingerprint=str(facts.result.get("dataset_fingerprint", "")),
        first_loss=facts.first_loss,
        final_loss=final,
        heldout_loss=heldout,
        tokens_per_s=facts.tokens_per_s,
        generations=len(formed),
        killed_worker=facts.killed_worker,
        killed_at_step=facts.killed_at_step,
        resumed_from_step=resumed,
        recovery_s=max(0, facts.first_step_after_kill_ms - facts.killed_at_ms) / 1000,
        checkpoints_committed=len(committed),
        checkpoint_bytes_written=sum(int(body.get("bytes_written", 0)) for body in committed),
        checkpoint_bytes_reused=sum(int(body.get("bytes_reused", 0)) for body in committed),
        events=facts.verified_events,
        streams_verified=facts.verified_streams,
        seconds=facts.seconds,
        sample=sample,
    )


def _killed_at(facts: Facts) -> int:
    """Where in the log the killed worker's end by SIGKILL stands; the log's length where it doesn't."""
    for index, (type_, body) in enumerate(facts.events):
        ended = type_ == "rendezvous.worker.Exited" and body.get("worker") == facts.killed_worker
        if ended and int(body.get("signal", 0)) == signal.SIGKILL:
            return index
    return len(facts.events)


def _committed(events: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[int, int]:
    """The steps whose checkpoints `events` commit, each with the generation that saved it."""
    bodies = (body for type_, body in events if type_ == "checkpoint.Committed")
    return {int(body["step"]): int(body.get("generation", 0)) for body in bodies}


def _resumed_from(facts: Facts) -> int:
    """The step that the second generation went on from: the one before its first, if its checkpoint was committed then.

    0 where there is no second generation, where it began anew, or where nothing in the log backs what it went on from.
    """
    for index, (type_, body) in enumerate(facts.events):
        if type_ == "rendezvous.step.StepRecorded" and int(body.get("generation", 0)) >= 2:
            step = int(body["step"]) - 1
            return step if step in _committed(facts.events[:index]) else 0
    return 0


def _plan(facts: Facts) -> str:
    """The last plan chosen: its mesh, and the reasons it gives."""
    texts = [str(body.get("plan", "")) for type_, body in facts.events if type_ == "rendezvous.plan.PlanChosen"]
    plan: dict[str, Any] = json.loads(texts[-1]) if texts and texts[-1] else {}
    axes = [f"{axis}={plan[axis]}" for axis in ("dp_replicate", "dp_shard", "tp", "pp") if axis in plan]
    return ", ".join(axes)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def rows(report: Report, size: Any) -> list[tuple[str, str]]:
    """The closing table; `size` prints bytes."""
    return [
        ("model", f"{report.parameters / 1e6:.1f} M parameters, {report.steps} steps on {report.world_size} workers"),
        ("plan", report.plan),
        ("training loss", f"{report.first_loss:.3f} → {report.final_loss:.3f}"),
        ("held-out loss", f"{report.heldout_loss:.3f}"),
        ("throughput", f"{report.tokens_per_s:,.0f} tokens/s"),
        (
            "checkpoints",
            f"{report.checkpoints_committed} committed, "
            f"{size(report.checkpoint_bytes_written)} written, {size(report.checkpoint_bytes_reused)} reused",
        ),
        ("failure", f"{report.killed_worker} killed at step {report.killed_at_step}"),
        (
            "recovery",
            f"{report.recovery_s:.2f} s from SIGKILL to the end of the next generation's first step, "
            f"resumed from step {report.resumed_from_step}",
        ),
        (
            "event log",
            f"{report.events} events in {report.streams_verified} streams, replay "
            + ("verified" if report.checks["the log folds to the stored state"] else "DIFFERS"),
        ),
        ("whole demo", f"{report.seconds:.0f} s"),
    ]
