"""What `bench comm` measured, as tables, as JSON and as a picture of break-even bandwidths."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from distroml.cli import output
from distroml.planner.picture.svg import INSIDE, WIDTH, Svg, seconds, style
from distroml.runtime.comm.report import CommReport, SchemeCost

_MBIT = 1e6 / 8
# The picture's bandwidths, in Mbit/s.
_LEAST, _MOST = 1.0, 1e5
_SAMPLES = 400
_ROW, _LABEL_W, _FIGURES_W = 34.0, 150.0, 250.0


def as_dict(report: CommReport) -> dict[str, Any]:
    """For programs: what was measured, and what follows of each scheme."""
    told: dict[str, Any] = msgspec.to_builtins(report)
    told["link_mbit_per_s"] = report.link_bytes_per_s() / _MBIT
    for row, cost in zip(told["schemes"], report.schemes, strict=True):
        even = report.break_even(cost)
        row["ratio"] = _ratio(report, cost)
        row["work_s_per_mib"] = cost.work_s / (report.buffer_bytes / (1 << 20))
        # JSON has no infinity: null where it always pays.
        row["break_even_mbit_per_s"] = even / _MBIT if math.isfinite(even) else None
    return told


def show(report: CommReport) -> None:
    """Tables for people."""
    hosts = len(set(report.hosts))
    output.out.print(
        f"{report.world_size} processes on {hosts} host{'s' if hosts > 1 else ''}, {report.backend}; "
        f"gradients of {output.binary_size(report.buffer_bytes)}; a rank sends "
        f"{_rate(report.link_bytes_per_s())} while they are summed plainly",
        markup=False,
    )
    output.table(
        ("LINK", "CALL", "RANKS", "SIZE", "TIME", "PER RANK"),
        [
            (one.level, one.collective, str(one.ranks), output.binary_size(one.bytes), output.short_time(one.seconds),
             _rate(one.bytes / one.seconds))
            for one in report.links
        ],
        empty="no link was measured",
    )  # fmt: skip
    print()
    output.table(
        ("SUM", "SIZE", "TIME", "SENT BY A RANK", "CHOSEN"),
        [
            (one.algorithm, output.binary_size(one.bytes), output.short_time(one.seconds),
             ", ".join(f"{output.binary_size(sent)} ({level})" for level, sent in one.sent_bytes.items()),
             "yes" if one.picked else "no")
            for one in report.sums
        ],
        empty="no sum was measured",
    )  # fmt: skip
    print()
    per_mib = report.buffer_bytes / (1 << 20)
    output.table(
        ("SCHEME", "FEWER BYTES", "WORK PER MIB", "HERE", "PAYS BELOW"),
        [
            (cost.scheme, _fewer(report, cost), output.short_time(cost.work_s / per_mib),
             output.short_time(cost.exchange_s), _pays(report, cost))
            for cost in report.schemes
        ],
        empty="no scheme was measured",
    )  # fmt: skip


def draw(report: CommReport) -> str:
    """One bar for each scheme: up to which bandwidth it is faster than the plain sum, and where the fastest of all."""
    svg = Svg()
    svg.label(28, 40, "Which compression pays at which bandwidth", size=22, weight=650)
    head = (
        f"{report.world_size} processes, {report.backend}, gradients of {output.binary_size(report.buffer_bytes)}; "
        "encoding and decoding as measured here, bytes as sent, latency left out"
    )
    svg.label(28, 66, head, cls="muted", size=13, room=1340)
    top, height = 92.0, 74 + _ROW * len(report.schemes) + 56
    svg.panel(top, height, "Break-even bandwidth", "what one rank can send")
    left, right = 14 + INSIDE + _LABEL_W, WIDTH - 14 - INSIDE - _FIGURES_W
    bottom = top + 50 + _ROW * len(report.schemes)

    def x(mbit: float) -> float:
        share = math.log(min(max(mbit, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
        return left + share * (right - left)

    grid = [_LEAST * (_MOST / _LEAST) ** (place / _SAMPLES) for place in range(_SAMPLES + 1)]
    best = report.ranges([mbit * _MBIT for mbit in grid])
    for row, cost in enumerate(report.schemes):
        y = top + 50 + row * _ROW
        svg.label(left - 12, y + 20, cost.scheme, weight=600, size=13, anchor="end")
        svg.rect(left, y + 4, right - left, _ROW - 10, cls="idle", radius=3)
        even = report.break_even(cost)
        if even > 0 and cost is not report.dense:
            title = f"{cost.scheme} beats the plain sum: {_pays(report, cost)}"
            svg.rect(left, y + 4, x(even / _MBIT) - left, _ROW - 10, cls="rest", radius=3, title=title)
        if cost.scheme in best:
            low, high = (value / _MBIT for value in best[cost.scheme])
            title = f"{cost.scheme} is the fastest from {_mbit(low)} to {_mbit(high)}"
            svg.rect(x(low), y + 4, max(3.0, x(high) - x(low)), _ROW - 10, cls="forward", radius=3, title=title)
        work = seconds(cost.work_s / (report.buffer_bytes / (1 << 20)))
        figures = f"{_pays(report, cost)}; {_ratio(report, cost):.4g} x, {work}/MiB"
        svg.label(right + 12, y + 20, figures, cls="muted", room=_FIGURES_W)
    for power in range(round(math.log10(_MOST / _LEAST)) + 1):
        mbit = _LEAST * 10**power
        svg.line(x(mbit), bottom, x(mbit), bottom + 5)
        svg.label(x(mbit), bottom + 20, _mbit(mbit), cls="muted", size=11, anchor="middle")
    here = report.link_bytes_per_s() / _MBIT
    svg.line(x(here), top + 46, x(here), bottom + 5, cls="limit", width=1.5)
    svg.label(x(here), top + 42, f"here {_mbit(here)}", size=11, anchor="middle")
    at = left
    for cls, words in (("forward", "the fastest of all"), ("rest", "faster than the plain sum"), ("idle", "slower")):
        svg.rect(at, bottom + 40, 10, 10, cls=cls, radius=2)
        svg.label(at + 15, bottom + 49, words, cls="muted")
        at += 15 + 6.4 * len(words) + 20
    return svg.text(top + height + 14, style(), title="break-even bandwidth of compression schemes")


def _ratio(report: CommReport, cost: SchemeCost) -> float:
    return report.dense.sent_bytes / cost.sent_bytes


def _fewer(report: CommReport, cost: SchemeCost) -> str:
    return "-" if cost is report.dense else f"{_ratio(report, cost):.4g} times"


def _pays(report: CommReport, cost: SchemeCost) -> str:
    if cost is report.dense:
        return "-"
    even = report.break_even(cost)
    return "never" if even == 0 else "always" if math.isinf(even) else _rate(even)


def _rate(bytes_per_s: float) -> str:
    return _mbit(bytes_per_s / _MBIT)


def _mbit(mbit: float) -> str:
    return f"{mbit / 1000:.3g} Gbit/s" if mbit >= 1000 else f"{mbit:.3g} Mbit/s"
