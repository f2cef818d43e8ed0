"""What was written about a job while it ran: its events, each with a few fields in words, and its log lines. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from distroml.logstore import Line
from distroml.telemetry.adapters.logs import LineRow
from distroml.telemetry.dashboard.present import Row
from distroml.telemetry.history.port import EventRow

_BAD_EVENTS = frozenset({"Broken", "Failed", "Exited", "Lost", "Found", "Detected"})
_EVENT_WORDS: Mapping[str, str] = {
    "step": "step {}",
    "number": "generation {}",
    "to_scheme": "to {}",
    "place": "of {}",
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


def line_rows(lines: Sequence[LineRow | Line]) -> list[Row]:
    """Log lines."""
    return [{"rank": x.rank, "at": x.at_ms, "stream": x.stream, "text": x.text} for x in lines]
