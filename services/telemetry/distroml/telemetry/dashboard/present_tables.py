"""A job's workers, checkpoints and recoveries as the tables of its page show them: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distroml.telemetry.adapters.summaries import WorkerUse
from distroml.telemetry.dashboard.present import Row, seconds, size
from distroml.telemetry.domain.rows import CheckpointRow
from distroml.telemetry.domain.summary import RecoveryRow
from distroml.telemetry.domain.view import JobView

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


def recovery_s(row: RecoveryRow) -> float:
    """Seconds from the loss to the first step."""
    return max(0, row.first_step_at_ms - row.lost_at_ms) / 1000
