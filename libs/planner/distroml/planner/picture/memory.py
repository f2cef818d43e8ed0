"""The stages: their blocks, and what their ranks hold at the peak, by part."""

from __future__ import annotations

from distroml.planner.picture.drawing import Drawing
from distroml.planner.picture.svg import INSIDE, PARTS, WIDTH, Svg, size, stage_colour

_ROW = 28.0
_MAX_ROWS = 12
_MAX_SQUARES = 22
_SQUARE = 13.0
_LABEL_W, _BLOCKS_W, _TOTAL_W = 64.0, 430.0, 118.0


def stages_panel(svg: Svg, drawing: Drawing, y: float) -> float:
    """Draw it below `y`; returns where it ends."""
    pp = drawing.plan.pp
    rows = list(range(pp)) if pp <= _MAX_ROWS else [*range(_MAX_ROWS - 4), -1, *range(pp - 3, pp)]
    parts = list(dict.fromkeys(part for memory in drawing.memory_bytes for part in memory))
    legend = 30.0 if parts else 0.0
    height = 52 + len(rows) * _ROW + legend + 8
    title = "Stages and memory" if pp > 1 else "Memory"
    note = "what a rank of each stage holds at its peak" if pp > 1 else "what a rank holds at its peak"
    svg.panel(y, height, title, note)
    left = 14 + INSIDE
    bar_x = left + _LABEL_W + _BLOCKS_W
    bar_w = WIDTH - 14 - INSIDE - _TOTAL_W - bar_x
    most = max([drawing.capacity_bytes, *(sum(memory.values()) for memory in drawing.memory_bytes)], default=0.0)
    for place, rank in enumerate(rows):
        top = y + 46 + place * _ROW
        if rank < 0:
            svg.label(left, top + 18, f"… {pp - len(rows) + 1} more stages", cls="muted")
            continue
        svg.rect(left, top + 5, 10, 16, fill=stage_colour(rank, pp), radius=3)
        svg.label(left + 18, top + 18, f"pp {rank}" if pp > 1 else "all", weight=600)
        _blocks(svg, drawing, rank, left + _LABEL_W, top)
        if drawing.memory_bytes and most:
            _bar(svg, drawing.memory_bytes[rank], parts, most, (bar_x, top, bar_w))
    if drawing.capacity_bytes and drawing.memory_bytes:
        x = bar_x + bar_w * drawing.capacity_bytes / most
        svg.line(x, y + 44, x, y + 48 + len(rows) * _ROW, cls="limit", width=1.5)
        svg.label(x - 5, y + 38, f"{size(drawing.capacity_bytes)} there is", cls="muted", anchor="end")
    x = bar_x
    for part, colour in _coloured(parts):
        svg.rect(x, y + height - 28, 10, 10, fill=colour, radius=2)
        svg.label(x + 15, y + height - 19, part.replace("_", " "), cls="muted")
        x += 15 + 6.4 * len(part) + 18
    return y + height


def _coloured(parts: list[str]) -> list[tuple[str, str]]:
    return [(part, PARTS[min(place, len(PARTS) - 1)]) for place, part in enumerate(parts)]


def _bar(svg: Svg, memory: dict[str, float], parts: list[str], most: float, box: tuple[float, float, float]) -> None:
    x, top, wide = box
    svg.rect(x, top + 4, wide, 18, cls="idle", radius=3)
    at = x
    for part, colour in _coloured(parts):
        w = wide * memory.get(part, 0.0) / most
        if w > 0:
            svg.rect(at, top + 4, w, 18, fill=colour, title=f"{part.replace('_', ' ')}: {size(memory[part])}")
        if w > 58:
            svg.label(at + w / 2, top + 17, size(memory[part]), cls="on", size=10.5, anchor="middle")
        at += w
    svg.label(x + wide + 12, top + 18, size(sum(memory.values())), weight=600)


def _blocks(svg: Svg, drawing: Drawing, rank: int, x: float, top: float) -> None:
    """The blocks of a rank's stages, with what runs before and after the chain at its ends."""
    plan, stages = drawing.plan, len(drawing.blocks)
    colour = stage_colour(rank, plan.pp)
    squares = max(2, _MAX_SQUARES // plan.chunks)
    for stage in range(rank, stages, plan.pp):
        first = sum(drawing.blocks[:stage])
        count = drawing.blocks[stage]
        if stage == 0:
            x = _end(svg, "in", "what runs before the chain", x, top)
        shown = count if count <= squares else squares - 1
        for place in range(shown):
            svg.rect(x, top + 7, _SQUARE - 2, _SQUARE - 1, fill=colour, radius=2, title=f"block {first + place}")
            x += _SQUARE
        if shown < count:
            svg.label(x + 3, top + 18, "…", cls="muted")
            x += _SQUARE
        if stage == stages - 1:
            x = _end(svg, "out", "what runs after the chain", x + 2, top)
        last = first + count - 1
        text = f"{first}–{last}" if count > 1 else str(first) if count else "none"
        svg.label(x + 5, top + 18, text, cls="muted", size=11)
        x += 5 + 6.2 * len(text) + 12


def _end(svg: Svg, text: str, title: str, x: float, top: float) -> float:
    wide = 8.0 + 7 * len(text)
    svg.rect(x, top + 6, wide, 15, cls="frame", radius=3, title=title)
    svg.label(x + wide / 2, top + 17, text, cls="muted", size=10.5, anchor="middle")
    return x + wide + 3
