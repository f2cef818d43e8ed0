"""A few SVG elements with everything escaped, the picture's colours, and numbers in words."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from distroml.planner.plan import Plan

WIDTH = 1400
INSIDE = 24.0
"""From a panel's edge to what is in it."""

PARTS = ("#3b5bdb", "#0b8296", "#7c5cc4", "#c2702e", "#2f9e62", "#b4446c", "#8a8f3c", "#6b7483", "#d98ba6")
"""Colours of the parts of memory, in their order; far apart in lightness as well as in hue."""

_COLOURS = {
    "page": "#f5f6f8",
    "ink": "#161a22",
    "muted": "#5d6675",
    "on": "#fff",
    "idle": "#e9ecf1",
    "forward": "#3b6fe0",
    "backward": "#2a9463",
    "weight": "#0b8296",
    "several": "#43829b",
    "after": "#a8741a",
    "rest": "#8b93a1",
}
_STYLE = """
.plan-picture { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.plan-picture .mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.plan-picture .card { fill: #fff; stroke: #e3e6eb; }
.plan-picture .frame { fill: none; stroke: #c3c9d3; }
.plan-picture .line { stroke: #d5d9e0; }
.plan-picture .limit { stroke: #c8342b; }
"""


def style() -> str:
    """The picture's own colours; a page overrides them by `.its-own .plan-picture .ink` and the like."""
    return _STYLE + "\n".join(f".plan-picture .{name} {{ fill: {colour}; }}" for name, colour in _COLOURS.items())


class Svg:
    """Collects elements in the order in which they are painted."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        *,
        cls: str = "",
        fill: str = "",
        radius: float = 0,
        title: str = "",
    ) -> None:
        """A rectangle; `title` is shown when it is pointed at."""
        look = f' class="{cls}"' if cls else ""
        look += f' fill="{fill}"' if fill else ""
        look += f' rx="{radius:g}"' if radius else ""
        inside = f"><title>{escape(title)}</title></rect>" if title else "/>"
        self._parts.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(0.0, w):.2f}" height="{h:.2f}"{look}{inside}')

    def line(self, x1: float, y1: float, x2: float, y2: float, *, cls: str = "line", width: float = 1) -> None:
        """A straight line."""
        self._parts.append(
            f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{cls}" stroke-width="{width:g}"/>'
        )

    def label(
        self,
        x: float,
        y: float,
        text: str,
        *,
        cls: str = "ink",
        size: float = 12,
        weight: int = 0,
        anchor: str = "start",
        room: float = 0,
    ) -> None:
        """A line of text with its baseline at `y`, cut to about `room` units where given."""
        if not text:
            return
        most = int(room / (size * (0.61 if "mono" in cls else 0.56))) if room else 0
        if most and len(text) > most:
            text = text[: max(1, most - 1)] + "…"
        bold = f' font-weight="{weight}"' if weight else ""
        where = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self._parts.append(
            f'<text x="{x:.2f}" y="{y:.2f}" class="{cls}" font-size="{size:g}"{bold}{where}>{escape(text)}</text>'
        )

    def panel(self, y: float, height: float, title: str, note: str = "") -> None:
        """A card over the whole width; what is painted next lies on it."""
        self.rect(14, y, WIDTH - 28, height, cls="card", radius=10)
        self.label(14 + INSIDE, y + 28, title, size=13.5, weight=620)
        self.label(14 + INSIDE + 8.9 * len(title) + 16, y + 28, note, cls="muted", room=900)

    def text(self, height: float, style: str, *, title: str) -> str:
        """The whole element."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plan-picture" role="img" aria-label={quoteattr(title)} '
            f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"><style>{style}</style>'
            f'<rect class="page" width="{WIDTH}" height="{height:.0f}"/>{"".join(self._parts)}</svg>'
        )


def stage_colour(place: int, count: int) -> str:
    """The colour of a pp coordinate: from blue by violet to rose, far enough apart to be told from its neighbours."""
    share = place / max(1, count - 1)
    return f"hsl({222 + 118 * share:.0f},{58 - 8 * share:.0f}%,{46 + (6 if place % 2 else 0)}%)"


def plan_text(plan: Plan) -> str:
    """The plan in one line."""
    return str(plan).replace(",", "  ")


def seconds(value: float) -> str:
    """A time with three figures: `38.4 ms`, `24.8 s`."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def size(count: float) -> str:
    """Bytes in the binary unit that fits: `61.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
