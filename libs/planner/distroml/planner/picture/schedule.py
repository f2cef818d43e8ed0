"""One step in time: every pass of every stage, and the bubbles between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from distroml.planner.picture.drawing import Drawing
from distroml.planner.picture.svg import INSIDE, WIDTH, Svg, seconds
from distroml.planner.timeline import Interval

_LABEL_W = 52.0
_ROOM = 380.0
"""Height for all rows together, where that leaves each a readable height."""
_NARROW, _NARROW_OF_MANY, _MANY = 1.6, 7.0, 3_000
"""Passes below this width are drawn as one where nothing is between them; a wider one where there are many."""
_MIN_REST = 0.01


@dataclass(frozen=True, slots=True)
class _Bar:
    cls: str
    start_s: float
    end_s: float
    text: str
    title: str


def schedule_panel(svg: Svg, drawing: Drawing, y: float) -> float:
    """Draw it below `y`; returns where it ends."""
    plan = drawing.plan
    row = min(30.0, max(5.0, _ROOM / plan.pp)) if plan.pp > 1 else 34.0
    height = 56 + plan.pp * row + 62
    svg.panel(y, height, "One step in time", _note(drawing))
    left, top = 14 + INSIDE + _LABEL_W, y + 48
    wide = WIDTH - 14 - INSIDE - left
    after = list(_after(drawing))
    end_s = max(drawing.passes_s, *(bar.end_s for bar in after)) if after else drawing.passes_s
    scale = wide / end_s if end_s else 0.0
    every = max(1, ceil(15 / row))
    narrow = _NARROW_OF_MANY if len(drawing.intervals) > _MANY else _NARROW
    by_rank: list[list[Interval]] = [[] for _ in range(plan.pp)]
    for interval in drawing.intervals:
        by_rank[interval.rank].append(interval)
    merged = False
    for rank, intervals in enumerate(by_rank):
        at = top + rank * row
        gap = 3.0 if row > 12 else 0.6
        svg.rect(left, at, drawing.passes_s * scale, row - gap, cls="idle", radius=2)
        if rank % every == 0:
            svg.label(left - 10, at + row / 2 + 3, f"pp {rank}" if plan.pp > 1 else "rank", cls="muted", anchor="end")
        for bar in _bars(intervals, scale, narrow):
            merged = merged or bar.cls == "several"
            w = (bar.end_s - bar.start_s) * scale
            x = left + bar.start_s * scale
            svg.rect(x, at, w - (0.8 if w > 4 else 0), row - gap, cls=bar.cls, title=bar.title)
            if bar.text and row >= 14 and w > 6 + 6.2 * len(bar.text):
                svg.label(x + w / 2, at + (row - gap) / 2 + 4, bar.text, cls="on", size=10.5, anchor="middle")
    bottom = top + plan.pp * row
    for bar in after:
        x, w = left + bar.start_s * scale, (bar.end_s - bar.start_s) * scale
        svg.rect(x, top, max(1.0, w - 0.8), plan.pp * row - 3, cls=bar.cls, title=bar.title)
        if w > 14 + 6.4 * len(bar.text):
            svg.label(x + w / 2, top + plan.pp * row / 2 + 3, bar.text, cls="on", size=11, anchor="middle")
    _axis(svg, left, bottom + 4, end_s, scale)
    _legend(svg, drawing, after, y + height - 20, merged=merged)
    return y + height


def _note(drawing: Drawing) -> str:
    plan = drawing.plan
    count = f"{drawing.microbatches} microbatch{'es' if drawing.microbatches > 1 else ''}"
    if drawing.drawn < drawing.microbatches:
        count = f"{drawing.drawn} of {count} drawn"
    if plan.pp == 1:
        return f"{count} on each rank"
    text = f"schedule {plan.schedule.replace('_', ' ')}, {count}; grey is a bubble"
    end_s = drawing.passes_s + sum(drawing.after_s.values())
    if drawing.drawn == drawing.microbatches and end_s > (1 + _MIN_REST) * drawing.step_seconds:
        text += f"; pass by pass {seconds(end_s)}, where {seconds(drawing.step_seconds)} are predicted in all"
    return text


def _bars(intervals: Sequence[Interval], scale: float, narrow: float) -> Iterator[_Bar]:
    """A rank's passes as bars; neighbours that would be too thin to see are one bar."""
    run: list[Interval] = []
    for interval in intervals:
        thin = (interval.end_s - interval.start_s) * scale < narrow
        touching = bool(run) and (interval.start_s - run[-1].end_s) * scale < _NARROW / 4
        if run and not (thin and touching):
            yield _bar(run)
            run = []
        run.append(interval)
        if not thin:
            yield _bar(run)
            run = []
    if run:
        yield _bar(run)


def _bar(run: Sequence[Interval]) -> _Bar:
    first, last = run[0], run[-1]
    when = f"{seconds(first.start_s)} to {seconds(last.end_s)}"
    if len(run) > 1:
        kinds = {interval.work.kind for interval in run}
        cls = kinds.pop() if len(kinds) == 1 else "several"
        return _Bar(cls, first.start_s, last.end_s, "", f"{len(run)} passes, {when}")
    work = first.work
    title = f"{work.kind} of microbatch {work.microbatch} in stage {work.stage}, {when}"
    return _Bar(work.kind, first.start_s, last.end_s, str(work.microbatch), title)


def _after(drawing: Drawing) -> Iterator[_Bar]:
    """What follows the passes, and what of the predicted step is in none of it."""
    at = drawing.passes_s
    parts = dict(drawing.after_s)
    rest = drawing.step_seconds - at - sum(parts.values())
    if drawing.drawn == drawing.microbatches and rest > _MIN_REST * drawing.step_seconds:
        parts["rest"] = rest
    for name, value in parts.items():
        if value > 0:
            words = name.replace("_", " ")
            yield _Bar("rest" if name == "rest" else "after", at, at + value, words, f"{words}: {seconds(value)}")
            at += value


def _axis(svg: Svg, x: float, y: float, end_s: float, scale: float) -> None:
    svg.line(x, y, x + end_s * scale, y)
    if not end_s:
        return
    step = 10.0 ** _exponent(end_s / 5)
    step *= next(factor for factor in (1, 2, 5, 10) if end_s / (step * factor) <= 8)
    place = 0
    while place * step <= end_s * 1.0001:
        at = x + place * step * scale
        svg.line(at, y, at, y + 5)
        svg.label(at, y + 18, seconds(place * step) if place else "0", cls="muted", size=11, anchor="middle")
        place += 1


def _exponent(value: float) -> int:
    exponent = 0
    while value >= 10:
        value, exponent = value / 10, exponent + 1
    while value < 1:
        value, exponent = value * 10, exponent - 1
    return exponent


def _legend(svg: Svg, drawing: Drawing, after: Sequence[_Bar], y: float, *, merged: bool) -> None:
    kinds = list(dict.fromkeys(interval.work.kind for interval in drawing.intervals))
    words = {"forward": "forward", "backward": "backward", "weight": "gradients of weights"}
    entries = [(kind, words[kind]) for kind in kinds]
    if merged:
        entries.append(("several", "many in turn"))
    if drawing.plan.pp > 1:
        entries.append(("idle", f"bubble {drawing.bubble:.1%}"))
    entries += [(bar.cls, bar.title) for bar in after]
    x = 14 + INSIDE + _LABEL_W
    for cls, text in entries:
        svg.rect(x, y - 9, 10, 10, cls=cls, radius=2)
        svg.label(x + 15, y, text, cls="muted")
        x += 15 + 6.4 * len(text) + 20
