"""Read models as the rows, words and colours of the pages: pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from distroml.logstore import Line
from distroml.planner import AXES
from distroml.telemetry.adapters.live import LiveRow
from distroml.telemetry.adapters.logs import LineRow
from distroml.telemetry.adapters.summaries import JobDetail, WorkerUse
from distroml.telemetry.domain.rows import CheckpointRow
from distroml.telemetry.domain.summary import Mark, RecoveryRow, stalled
from distroml.telemetry.domain.thinning import Bucket
from distroml.telemetry.domain.view import JobView
from distroml.telemetry.history.port import EventRow

Row = Mapping[str, object]

TONES = {
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
_WORKER_TONES = {
    "running": "run",
    "starting": "wait",
    "waiting": "warn",
    "hung": "bad",
    "failed": "bad",
    "lost": "bad",
    "exited": "good",
    "done": "mute",
}
_CHECKPOINT_TONES = {"committed": "good", "saving": "wait", "failed": "bad", "damaged": "bad", "deleted": "mute"}


def number(value: float) -> str:
    """Three or four figures that matter, with thousands set apart: `12,480`, `86.2`, `0.0031`."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value else "0"


def size(bytes_: float) -> str:
    """Bytes in the unit that fits: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(bytes_) < 1024 or unit == "TiB":
            return f"{bytes_:.0f} {unit}" if unit == "B" or bytes_ >= 1000 else f"{bytes_:.3g} {unit}"
        bytes_ /= 1024
    raise AssertionError("unreachable")


def seconds(value: float) -> str:
    """A short time: `84 ms`, `2.31 s`."""
    if 0 < value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def loss_text(value: float | None) -> str:
    """A loss to four places, or a dash."""
    return "–" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:.3e}"


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
    tone = TONES.get(state, "mute")
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
        "tone": TONES.get(state, "mute"),
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


def recovery_s(row: RecoveryRow) -> float:
    """Seconds from the loss to the first step."""
    return max(0, row.first_step_at_ms - row.lost_at_ms) / 1000


def worker_rows(view: JobView, use: Mapping[int, WorkerUse]) -> list[Row]:
    """Workers by rank; ranks known by their samples only are listed too."""
    rows: list[Row] = []
    seen: set[int] = set()
    for w in view.workers:
        seen.add(w.rank)
        rows.append(_worker_row(w.rank, w.worker, w.node, w.pid, w.state, w.message, w.start, use.get(w.rank)))
    for rank in sorted(use.keys() - seen) if not view.workers else ():
        u = use[rank]
        rows.append(_worker_row(rank, u.worker, u.node, 0, "running", "", "", u))
    return rows


def _worker_row(
    rank: int, worker: str, node: str, pid: int, state: str, message: str, start: str, use: WorkerUse | None
) -> Row:
    ended = state in ("done", "exited", "failed", "lost")
    gpu = use.gpu_ratio if use is not None and not ended else None
    cpu = use.cpu_ratio if use is not None and use.at_ms and not ended else None
    return {
        "id": worker or f"rank {rank}",
        "rank": str(rank),
        "node": node,
        "pid": str(pid) if pid else "",
        "state": {"state": state, "tone": _WORKER_TONES.get(state, "mute"), "reason": message, "message": message},
        "start": start,
        "cpu": None if cpu is None else {"ratio": cpu, "text": f"{cpu:.0%}"},
        "memory": size(use.rss_bytes) if use is not None and use.rss_bytes and not ended else "",
        "gpu": None if gpu is None else {"ratio": gpu, "text": f"{gpu:.0%}"},
        "step": f"{use.step:,}" if use is not None and use.step_at_ms else "",
        "seen": use.step_at_ms if use is not None else 0,
    }


def checkpoint_rows(checkpoints: Sequence[CheckpointRow], limit: int = 50) -> list[Row]:
    """Saves, newest first."""
    return [
        {
            "id": c.save_id or f"step {c.step}",
            "step": f"{c.step:,}",
            "state": {
                "state": c.state,
                "tone": _CHECKPOINT_TONES.get(c.state, "mute"),
                "reason": c.message or ("verified" if c.verified else ""),
                "message": c.message,
            },
            "age": c.at_ms,
            "written": size(c.bytes_written) if c.bytes_total else "",
            "reused": size(c.bytes_reused) if c.bytes_total else "",
            "seconds": seconds(c.save_s) if c.save_s else "",
            "hash": c.manifest_hash[:12],
        }
        for c in reversed(checkpoints[-limit:])
    ]


def recovery_rows(job: str, rows: Sequence[RecoveryRow]) -> list[Row]:
    """Recoveries, newest first."""
    return [
        {
            "id": f"{r.lost_at_ms}",
            "generation": f"→ {r.generation}" if r.generation else "forming",
            "cause": {"text": (r.category or r.cause).replace("_", " "), "sub": r.worker.removeprefix(f"{job}.")},
            "at": r.lost_at_ms,
            "took": seconds(recovery_s(r)) if r.first_step_at_ms else "running",
            "from": f"{r.resumed_from_step:,}" if r.first_step_at_ms else "",
        }
        for r in reversed(rows[-50:])
    ]


def mark_rows(marks: Sequence[Mark]) -> list[Row]:
    """Marks of the charts."""
    return [{"kind": m.kind, "step": m.step, "text": m.text, "at": m.at_ms} for m in marks[-300:]]


def points(history: Sequence[Bucket], name: str) -> list[list[float]]:
    """A series as the charts take it: [step, mean, minimum, maximum]."""
    return [
        [b.x, _round(total / n), _round(low), _round(high)]
        for b in history
        if (stat := b.stats.get(name)) is not None
        for n, total, low, high in (stat,)
    ]


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def line_rows(lines: Sequence[LineRow | Line]) -> list[Row]:
    """Log lines."""
    return [{"rank": x.rank, "at": x.at_ms, "stream": x.stream, "text": x.text} for x in lines]


_BAD_EVENTS = frozenset({"Broken", "Failed", "Exited", "Lost", "Found", "Detected"})
_EVENT_WORDS: Mapping[str, str] = {
    "step": "step {}",
    "number": "generation {}",
    "to_scheme": "to {}",
    "world_size": "world size {}",
    "reason": "{}",
    "message": "{}",
    "cause": "{}",
    "why": "{}",
    "outcome": "{}",
    "category": "{}",
    "worker": "{}",
    "node": "{}",
    "verdict": "{}",
    "faster": "{} times faster",
    "actor": "by {}",
}


def event_row(event: EventRow) -> Row:
    """An event with a few of its fields in words."""
    service, _, rest = event.type.partition(".")
    kind, _, name = rest.rpartition(".")
    kind = kind or service
    body = _body(event.json)
    inner = body.get("generation")
    if isinstance(inner, dict):
        body = {**body, **cast("dict[str, object]", inner)}
    if isinstance(worker := body.get("worker"), str):
        # The page is the job's.
        body = {**body, "worker": worker.removeprefix(f"{event.stream.rpartition('/')[2]}.")}
    words = [form.format(_word(body[k])) for k, form in _EVENT_WORDS.items() if body.get(k)]
    clean = name == "Exited" and (body.get("expected") or not (body.get("code") or body.get("signal")))
    tone = "mute"
    if any(name.endswith(bad) for bad in _BAD_EVENTS) and not clean:
        tone = "bad"
    elif name in ("Succeeded", "Committed", "Verified"):
        tone = "good"
    elif name in ("GenerationFormed", "Started", "AttemptStarted"):
        tone = "run"
    return {
        "position": event.position,
        "name": name if name.lower().startswith(kind) else f"{kind}.{name}",
        "text": " · ".join(dict.fromkeys(words[:4])),
        "at": event.at_ms,
        "stream": event.stream,
        "version": event.version,
        "actor": event.actor,
        "json": event.json,
        "tone": tone,
        "minor": name == "Progressed",
    }


def _word(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.removeprefix("FAILURE_CATEGORY_").lower() if text.startswith("FAILURE_CATEGORY_") else text


def _body(text: str) -> dict[str, object]:
    try:
        body: object = json.loads(text)
    except ValueError:
        return {}
    return cast("dict[str, object]", body) if isinstance(body, dict) else {}
