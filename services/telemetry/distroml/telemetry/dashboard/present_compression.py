"""A job's compression as its panel shows it: the schemes that hold, why they changed, what `auto` would gain. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from distroml.telemetry.adapters.summaries import JobDetail
from distroml.telemetry.dashboard.present import Row, seconds
from distroml.telemetry.domain.rows import SchemeRow
from distroml.telemetry.domain.schemes import buckets_text, held_text, numbers_of, of_places, scheme_changes
from distroml.telemetry.domain.summary import current_advice
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
    """The schemes of the newest generation that told any, as `held_text` says them; what the job asked for before.

    Whether a scheme that is asked for is used, nobody tells: a script may have its own, or one rank, or no `Trainer`.
    """
    if held := view.holding:
        since = f"in generation {held[0].generation}: " if held[0].generation < view.generation else ""
        return since + held_text(held)
    return f"asked for: {view.compress}" if view.compress not in ("", "none") else ""


def change_rows(view: JobView) -> list[Row]:
    """One row for what changed at the same step in the same way, newest first."""
    rows: list[Row] = []
    for changes in scheme_changes(view.schemes).values():
        ways: dict[tuple[str, str, str, str], list[SchemeRow]] = {}
        for one in changes:
            ways.setdefault((one.from_scheme, one.to_scheme, one.reason, one.why), []).append(one)
        rows += [_row(alike) for alike in ways.values()]
    return list(reversed(rows[-_SHOWN:]))


def _row(alike: Sequence[SchemeRow]) -> Row:
    first = alike[0]
    return {
        "key": f"{first.generation}.{first.from_step}.{first.place}.{first.bucket}",
        "step": f"{first.from_step:,}",
        "buckets": of_places([first.place], buckets_text(numbers_of(alike))),
        "change": f"{first.from_scheme} → {first.to_scheme}",
        "why": {"text": first.why or first.reason, "sub": first.reason if first.why else ""},
        "at": first.at_ms,
    }


def advice_text(exposed_s: float, step_s: float, predicted_s: float, faster: float) -> str:
    """What `auto` would gain, in a sentence."""
    share = 100 * exposed_s / step_s if step_s > 0 else 0.0
    return (
        f"{share:.0f} % of a step waits for communication; --compress auto would make a step of {seconds(step_s)} "
        f"one of {seconds(predicted_s)}, and reach a loss {faster:.2g} times faster"
    )
