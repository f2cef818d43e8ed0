"""A job's compression as its panel shows it: the schemes that hold, why they changed, what `auto` would gain. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distroml.telemetry.adapters.summaries import JobDetail
from distroml.telemetry.dashboard.present import Row, seconds
from distroml.telemetry.domain.rows import SchemeRow
from distroml.telemetry.domain.summary import buckets_text, current_advice, scheme_changes
from distroml.telemetry.domain.view import JobView

_SHOWN = 50


def compression(detail: JobDetail) -> Row:
    """The panel; `known` is False where there is nothing to say."""
    view = detail.view
    advice, now = current_advice(view), schemes_now(view)
    return {
        "known": bool(now) or advice is not None,
        "now": now,
        "hint": ""
        if advice is None
        else advice_text(advice.exposed_s, advice.step_s, advice.predicted_s, advice.faster),
        "rows": change_rows(view),
    }


def schemes_now(view: JobView) -> str:
    """The schemes of the newest generation that told any: `powersgd:4+int8 (3 buckets), int8 (bucket 0)`.

    A scheme that never changes is told by nobody: it is what the job asks for.
    """
    if not view.schemes:
        return f"{view.compress}, as the job asks" if view.compress not in ("", "none") else ""
    newest = view.schemes[-1].generation
    held = {row.bucket: row.to_scheme for row in view.schemes if row.generation == newest}
    counts = Counter(held.values())
    parts = [
        f"{scheme} ({buckets_text(bucket for bucket, one in held.items() if one == scheme)})"
        for scheme, _ in counts.most_common()
    ]
    return ", ".join(parts)


def change_rows(view: JobView) -> list[Row]:
    """One row for what changed at the same step in the same way, newest first."""
    rows: list[Row] = []
    for (generation, step), changes in scheme_changes(view).items():
        ways: dict[tuple[str, str, str, str], list[SchemeRow]] = {}
        for one in changes:
            ways.setdefault((one.from_scheme, one.to_scheme, one.reason, one.why), []).append(one)
        rows += [_row(generation, step, *way, alike) for way, alike in ways.items()]
    return list(reversed(rows[-_SHOWN:]))


def _row(generation: int, step: int, old: str, new: str, reason: str, why: str, alike: Sequence[SchemeRow]) -> Row:
    buckets = buckets_text(row.bucket for row in alike)
    return {
        "key": f"{generation}.{step}.{alike[0].bucket}",
        "step": f"{step:,}",
        "buckets": buckets,
        "change": f"{old} → {new}",
        "why": {"text": why or reason, "sub": reason if why else ""},
        "at": alike[0].at_ms,
    }


def advice_text(exposed_s: float, step_s: float, predicted_s: float, faster: float) -> str:
    """What `auto` would gain, in a sentence."""
    share = 100 * exposed_s / step_s if step_s > 0 else 0.0
    return (
        f"{share:.0f} % of a step waits for communication; --compress auto would make a step of {seconds(step_s)} "
        f"one of {seconds(predicted_s)}, and reach a loss {faster:.2g} times faster"
    )
