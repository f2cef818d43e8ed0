"""A plan as a picture: its mesh on the machines, its stages and their memory, and one step of its schedule. Pure.

    svg = draw(Drawing(plan=plan, …))

The SVG stands alone (no script, no font, no address) and is as readable inside a page: colours hang on classes below
`.plan-picture`, so that a page may give its own. Text from a model, such as its name, is always escaped.
"""

from __future__ import annotations

from distroml.planner.picture.drawing import Drawing, Level
from distroml.planner.picture.memory import stages_panel
from distroml.planner.picture.mesh import mesh_panel
from distroml.planner.picture.schedule import schedule_panel
from distroml.planner.picture.svg import WIDTH, Svg, plan_text, seconds, size, style

__all__ = ["Drawing", "Level", "draw"]

_GAP = 14
_HEAD = 92


def draw(drawing: Drawing) -> str:
    """The picture as one `<svg>` element, 1400 units wide and as high as it needs."""
    svg = Svg()
    _head(svg, drawing)
    y = float(_HEAD)
    for panel in (mesh_panel, stages_panel, schedule_panel):
        y = panel(svg, drawing, y) + _GAP
    return svg.text(y, style(), title=f"plan {drawing.plan}")


def _head(svg: Svg, drawing: Drawing) -> None:
    svg.label(28, 40, drawing.name, size=22, weight=650, room=760)
    svg.label(28, 66, plan_text(drawing.plan), cls="muted mono", size=13, room=800)
    peak = max((sum(parts.values()) for parts in drawing.memory_bytes), default=0.0)
    tiles = [("step", seconds(drawing.step_seconds), "")]
    if drawing.mfu:
        tiles.append(("model flops used", f"{drawing.mfu:.1%}", ""))
    if peak:
        tiles.append(
            ("most memory", size(peak), f"of {size(drawing.capacity_bytes)}" if drawing.capacity_bytes else "")
        )
    if drawing.plan.pp > 1:
        tiles.append(("bubble", f"{drawing.bubble:.1%}", ""))
    x = WIDTH - 28.0
    for name, value, more in reversed(tiles):
        wide = max(12 * len(value), 7 * len(name), 7 * len(more)) + 22
        svg.label(x, 34, name, cls="muted", anchor="end")
        svg.label(x, 57, value, size=19, weight=620, anchor="end")
        svg.label(x, 74, more, cls="muted", anchor="end")
        x -= max(wide, 96)
