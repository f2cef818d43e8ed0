"""Where a job stands, in words: its line among all jobs, and head and facts of its own page. Pure."""

from __future__ import annotations

from distroml.planner import AXES
from distroml.telemetry.adapters.live import LiveRow
from distroml.telemetry.adapters.summaries import JobDetail
from distroml.telemetry.dashboard.present import Row, loss_text, number, seconds
from distroml.telemetry.dashboard.present_tables import recovery_s
from distroml.telemetry.domain.summary import stalled
from distroml.telemetry.domain.view import JobView

_TONES = {
    "running": "run",
    "recovering": "warn",
    "admitted": "run",
    "queued": "wait",
    "paused": "wait",
    "pausing": "warn",
    "cancelling": "warn",
    "preempting": "warn",
    "succeeded": "good",
    "failed": "bad",
    "cancelled": "mute",
}


def shown_state(view: JobView) -> tuple[str, str, str]:
    """State, reason and message as a person sees them: a running job between two generations is recovering."""
    if view.state == "running" and view.generations:
        newest = view.generations[-1]
        broken = next((g for g in reversed(view.generations) if g.broken_ms), None)
        if broken is not None and broken.failed and (newest is broken or not newest.formed_ms):
            what = (broken.category or broken.cause).replace("_", " ")
            who = f"{broken.worker}: " if broken.worker else ""
            return "recovering", "GenerationBroken", f"{who}{broken.message or what}; a new generation is forming"
    return view.state or "unknown", view.reason, view.message


def progress(view: JobView, live: LiveRow) -> tuple[int, int]:
    """Step and total as samples say them, else as the scheduler does."""
    step = live.step if live.at_ms else view.step
    return step, live.total_steps or view.total_steps


def job_row(view: JobView, live: LiveRow, reason: tuple[str, str] | None, now_ms: int) -> Row:
    """One line of the jobs table; `reason` is the scheduler's newest word on a waiting job."""
    state, why, message = shown_state(view)
    if reason is not None and state == "queued":
        why, message = reason
    step, total = progress(view, live)
    fresh = state == "running" and not stalled(now_ms, live.at_ms, live.step_s)
    workers = view.world_size if state in ("running", "recovering") else 0
    most = view.max_workers or view.min_workers
    tone = _TONES.get(state, "mute")
    return {
        "id": view.job,
        "href": f"/jobs/{view.job}",
        "name": {"text": view.name or view.job, "sub": view.job},
        "state": {"state": state, "tone": tone, "reason": why, "message": message},
        "workers": f"{workers}/{most}" if workers and most else str(workers or most or ""),
        "progress": _bar(step, total, tone),
        "loss": "" if live.loss is None else loss_text(live.loss),
        "speed": throughput(live) if fresh else "",
        "age": view.submitted_ms,
        "eta": live.eta_ms if state == "running" and fresh else 0,
    }


def _bar(step: int, total: int, tone: str) -> Row | None:
    if not step and not total:
        return None
    return {"step": step, "total": total, "tone": tone, "text": f"{step:,} / {total:,}" if total else f"{step:,}"}


def throughput(live: LiveRow) -> str:
    """Tokens a second, or samples where the script counts no tokens."""
    if live.tokens_per_s:
        return f"{number(live.tokens_per_s)} tok/s"
    return f"{number(live.samples_per_s)} smp/s" if live.samples_per_s else ""


def head(detail: JobDetail, reason: tuple[str, str] | None) -> Row:
    """Top of the job page."""
    view = detail.view
    state, why, message = shown_state(view)
    if reason is not None and state == "queued":
        why, message = reason
    if view.category and state == "failed":
        message = message or view.category.replace("_", " ")
    step, total = progress(view, detail.live)
    none_yet = "no step was seen" if view.ended else "no step yet"
    if state == "succeeded" and not (step or view.plans or view.checkpoints_committed):
        message = (
            message or "ended with exit 0 and no step was seen: a Trainer tells its steps, a plain script need not"
        )
    return {
        "id": view.job,
        "name": view.name or view.job,
        "state": state,
        "tone": _TONES.get(state, "mute"),
        "reason": why,
        "message": message,
        "why": bool(why or message),
        "step": step,
        "total": total,
        "progress": f"step {step:,} of {total:,}" if total else f"step {step:,}" if step else none_yet,
    }


def facts(detail: JobDetail, now_ms: int) -> list[Row]:
    """Labelled values below the head."""
    view, live = detail.view, detail.live
    state, *_ = shown_state(view)
    fresh = state == "running" and not stalled(now_ms, live.at_ms, live.step_s)
    mesh, wanted = _mesh(view), "–".join(map(str, dict.fromkeys((view.min_workers, view.max_workers))))
    restarts = ", ".join(f"{n} × {cause.replace('_', ' ')}" for cause, n in view.restarts)
    done = [r for r in detail.recoveries if r.first_step_at_ms]
    fast = f"last recovery {recovery_s(done[-1]):.1f} s" if done else ""
    items: list[Row] = [
        {"key": "loss", "label": "Loss", "value": loss_text(live.loss)},
        {
            "key": "speed",
            "label": "Throughput",
            "value": (throughput(live) if fresh or view.ended else "") or "–",
            "sub": f"{seconds(live.step_s)} per step" if live.step_s else "",
        },
    ]
    if view.ended:
        items.append({"key": "ended", "label": "Ended", "kind": "ago", "at": view.finished_ms})
    else:
        items.append({"key": "eta", "label": "Estimated end", "kind": "eta", "at": live.eta_ms if fresh else 0})
    began = view.started_ms or view.submitted_ms
    items += [
        {
            "key": "elapsed",
            "label": "Elapsed" if view.started_ms else "Waiting",
            "kind": "elapsed",
            "at": began,
            "until": view.finished_ms,
        },
        {
            "key": "world",
            "label": "World size",
            "value": str(view.world_size or live.world_size or "–"),
            "sub": mesh or (f"{wanted} wanted" if view.max_workers else ""),
        },
        {
            "key": "generation",
            "label": "Generation",
            "value": str(max(view.generation, live.generation) or "–"),
            "sub": f"attempt {view.attempt}" if view.attempt else "",
        },
        {
            "key": "restarts",
            "label": "Interruptions",
            "value": str(sum(n for _, n in view.restarts)),
            "sub": restarts or fast,
            "title": fast,
            "tone": "warn" if view.restarts else "",
        },
        {
            "key": "checkpoints",
            "label": "Checkpoints",
            "value": str(view.checkpoints_committed),
            "sub": f"last at step {view.last_checkpoint_step:,}" if view.last_checkpoint_step >= 0 else "",
        },
    ]
    return items


def _mesh(view: JobView) -> str:
    """The mesh of the newest generation: its plan's, where it chose one."""
    newest = view.plans[-1] if view.plans else None
    if newest is not None and newest.plan and newest.generation == view.generation:
        sizes = [part.split("=") for part in newest.plan.split(",") if part.partition("=")[0] in AXES]
    else:
        sizes = [[axis, str(size)] for axis, size in view.mesh]
    return " × ".join(f"{axis} {size}" for axis, size in sizes if size != "1")
