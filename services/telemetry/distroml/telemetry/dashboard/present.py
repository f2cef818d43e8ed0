"""Numbers, sizes and times in words, as all pages and panels write them: pure."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]


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
