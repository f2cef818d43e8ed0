"""The mesh: which axis joins which ranks, over which links, and which ranks share a machine."""

from __future__ import annotations

from itertools import pairwise

from distroml.planner.picture.drawing import Drawing, Level
from distroml.planner.picture.svg import INSIDE, WIDTH, Svg, stage_colour
from distroml.planner.plan import Axis

_CELL_W, _CELL_H = 32.0, 22.0
_AXES_W = 486.0
_MAX_CELLS = 16
_LINE = 26.0
_WORDS: dict[Axis, str] = {
    "pp": "stages of the chain",
    "dp_replicate": "whole copies",
    "dp_shard": "shares of the parameters",
    "tp": "parts of each layer",
}


def axis_place(drawing: Drawing, axis: Axis) -> tuple[int, Level | None]:
    """How many ranks apart an axis' neighbours are, and the innermost level whose groups hold a whole line of it."""
    order = drawing.plan.order
    stride = 1
    for inner in order[order.index(axis) + 1 :]:
        stride *= drawing.plan.mesh[inner]
    reach = stride * drawing.plan.mesh[axis]
    return stride, next((level for level in drawing.levels if level.ranks % reach == 0), None)


def mesh_panel(svg: Svg, drawing: Drawing, y: float) -> float:
    """Draw it below `y`; returns where it ends."""
    plan = drawing.plan
    axes: list[Axis] = [axis for axis in plan.order if plan.mesh[axis] > 1]
    group = drawing.levels[0].ranks if drawing.levels else plan.world_size
    name = drawing.levels[0].name if drawing.levels else "ranks"
    shown = min(group, plan.world_size, _MAX_CELLS)
    columns = min(shown, 4 if shown > 4 else shown)
    rows = -(-shown // columns)
    # Where the ranks do not all fit, the last cell says so.
    box_w, box_h = columns * _CELL_W + 16, rows * _CELL_H + 34
    per_line = max(1, int((WIDTH - 28 - 2 * INSIDE - _AXES_W + 12) / (box_w + 12)))
    groups = -(-plan.world_size // group)
    lines = min(2 if rows < 4 else 1, -(-groups // per_line))
    height = 52 + max(max(1, len(axes)) * 2 * _LINE - 8, lines * (box_h + 12)) + 8
    svg.panel(y, height, "Mesh", f"{plan.world_size:,} ranks, from the outermost axis to the innermost")
    _axes(svg, drawing, axes, y + 60)
    room = per_line * lines
    drawn = groups if groups <= room else room - 1
    x0 = 14 + INSIDE + _AXES_W
    for place in range(drawn):
        x, top = x0 + place % per_line * (box_w + 12), y + 44 + place // per_line * (box_h + 12)
        label = f"{name} {place}" if groups > 1 or drawing.levels else name
        _group(svg, drawing, label, range(place * group, min((place + 1) * group, plan.world_size)), x, top, columns)
    if drawn < groups:
        x, top = x0 + drawn % per_line * (box_w + 12), y + 44 + drawn // per_line * (box_h + 12)
        svg.rect(x, top, box_w, box_h, cls="idle", radius=7)
        svg.label(x + box_w / 2, top + box_h / 2, f"{groups - drawn:,} more", cls="muted", size=14, anchor="middle")
        svg.label(x + box_w / 2, top + box_h / 2 + 17, f"of {groups:,} {name}s", cls="muted", anchor="middle")
    return y + height


def _axes(svg: Svg, drawing: Drawing, axes: list[Axis], y: float) -> None:
    x = 14 + INSIDE
    if not axes:
        svg.label(x, y + 4, "one rank: nothing is split or copied", cls="muted")
    for place, axis in enumerate(axes):
        count = drawing.plan.mesh[axis]
        stride, level = axis_place(drawing, axis)
        top = y + place * 2 * _LINE
        svg.rect(x, top - 15, 156, 38, cls="idle", radius=7)
        svg.label(x + 12, top + 9, axis, weight=600, size=13)
        svg.label(x + 144, top + 9, f"{count:,}", weight=650, size=15, anchor="end")
        ranks = ", ".join(f"{rank:,}" for rank in range(0, min(count, 3) * stride, stride))
        svg.label(x + 172, top, f"{_WORDS[axis]}: ranks {ranks}{', …' if count > 3 else ''}", room=300)
        svg.label(x + 172, top + 17, _links(drawing, level), cls="muted", room=300)


def _links(drawing: Drawing, level: Level | None) -> str:
    if level is None:
        return f"across {drawing.levels[-1].name}s" if drawing.levels else "links are not known"
    return f"inside a {level.name}" if level is drawing.levels[0] else f"across {_below(drawing, level).name}s"


def _below(drawing: Drawing, level: Level) -> Level:
    return next(inner for inner, outer in pairwise(drawing.levels) if outer is level)


def _group(svg: Svg, drawing: Drawing, label: str, ranks: range, x: float, y: float, columns: int) -> None:
    plan = drawing.plan
    cells = list(ranks) if len(ranks) <= _MAX_CELLS else list(ranks)[: _MAX_CELLS - 1]
    places = len(cells) + (len(cells) < len(ranks))
    svg.rect(x, y, columns * _CELL_W + 16, -(-places // columns) * _CELL_H + 34, cls="frame", radius=7)
    svg.label(x + 9, y + 18, label, cls="muted")
    for place, rank in enumerate(cells):
        where = plan.coordinate(rank)
        left, top = x + 8 + place % columns * _CELL_W, y + 26 + place // columns * _CELL_H
        title = f"rank {rank}: " + ", ".join(f"{axis} {where[axis]}" for axis in plan.order if plan.mesh[axis] > 1)
        colour = stage_colour(where["pp"], plan.pp)
        svg.rect(left + 1, top + 1, _CELL_W - 2, _CELL_H - 2, fill=colour, radius=4, title=title)
        svg.label(
            left + _CELL_W / 2, top + 15, str(rank), cls="on", size=10.5 if rank < 10_000 else 8.5, anchor="middle"
        )
    if len(cells) < len(ranks):
        place = len(cells)
        left, top = x + 8 + place % columns * _CELL_W, y + 26 + place // columns * _CELL_H
        svg.label(left + _CELL_W / 2, top + 15, f"+{len(ranks) - place}", cls="muted", anchor="middle")
