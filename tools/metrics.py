"""The table of all metrics in docs/metrics.md: `python tools/metrics.py` writes it from the code.

Metrics are found by importing every module that makes some; a test holds the table fresh.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from distroml.observability import names
from distroml.observability.metrics import Described, described

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- begin: written by tools/metrics.py -->", "<!-- end -->"
_IMPORT: Final = re.compile(r"^from distroml\.observability(\.metrics)? import .*", re.MULTILINE)
_MAKES: Final = re.compile(r"\b(counter|gauge|histogram)\(")

GROUPS: Final = (
    ("Every service", ("rpc", "task", "service", "clock", "data", "lease", "eventstore", "subscription", "spans")),
    ("Queue, jobs, nodes, slots and cost: scheduler", ("scheduler",)),
    ("Generations: rendezvous", ("rendezvous",)),
    ("Checkpoints: checkpoint", ("checkpoint", "checkpoints")),
    ("The log: relay", ("relay",)),
    ("Training, communication, recoveries and goodput: telemetry", ("train",)),
    ("Telemetry itself", ("telemetry",)),
    ("Agents", ("agent",)),
)
"""Headings of the table, and the first words of the names below each."""


def modules() -> Iterator[str]:
    """Modules that make metrics."""
    for root in ("libs", "services"):
        for path in sorted((ROOT / root).glob("*/distroml/**/*.py")):
            text = path.read_text("utf-8")
            if _IMPORT.search(text) and _MAKES.search(text):
                parts = path.with_suffix("").parts
                start = parts.index("distroml", len(ROOT.parts))
                yield ".".join(parts[start:]).removesuffix(".__init__")


def all_metrics() -> Sequence[Described]:
    """Every metric that any part of the platform makes."""
    for module in modules():
        importlib.import_module(module)
    from distroml.telemetry.metrics import TrainingMetrics

    # These are made per reader of samples, not with the module.
    TrainingMetrics(max_jobs=1, ttl_s=1, clock_s=lambda: 0.0, registry=CollectorRegistry())
    return [metric for metric in described() if metric.name.startswith("distroml_")]


def heading(metric: Described) -> str:
    """Below which heading a metric stands; raises `ValueError` where none is for it."""
    word = metric.name.removeprefix("distroml_").partition("_")[0]
    for title, words in GROUPS:
        if word in words:
            return title
    raise ValueError(f"{metric.name}: no heading of tools/metrics.py is for metrics of {word!r}; name one in GROUPS")


def table(metrics: Sequence[Described]) -> str:
    """The tables, and what bounds each label."""
    lines: list[str] = []
    for title, _ in GROUPS:
        own = [metric for metric in metrics if heading(metric) == title]
        if own:
            lines += ["", f"### {title}", "", "| name | kind | labels | what it counts |", "|---|---|---|---|"]
            for one in own:
                labels = ", ".join(f"`{label}`" for label in one.labels)
                lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    used = {label for metric in metrics for label in metric.labels}
    lines += ["", "### Labels", "", "| label | why its values are few |", "|---|---|"]
    lines += [f"| `{label}` | {bound} |" for label, bound in sorted(names.LABEL_BOUNDS.items()) if label in used]
    return "\n".join(lines).strip() + "\n"


def page(text: str) -> str:
    """The page with its tables as the code has them now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(all_metrics())}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    print(PAGE)
