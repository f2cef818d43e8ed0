"""The compression panel of the job page: the schemes that hold, their changes with reasons, what `auto` would gain."""

from __future__ import annotations

from nicegui import ui

from distroml.telemetry.adapters.summaries import JobDetail
from distroml.telemetry.dashboard import present_compression
from distroml.telemetry.dashboard.elements import Row, Table

_COLUMNS: list[Row] = [
    {"key": "step", "label": "From step", "kind": "text"},
    {"key": "buckets", "label": "Buckets", "kind": "text"},
    {"key": "change", "label": "Change", "kind": "mono"},
    {"key": "why", "label": "Why", "kind": "pair"},
    {"key": "at", "label": "Told", "kind": "ago", "align": "right"},
]


class CompressionPanel:
    """Shows nothing while a job neither compresses its gradients nor would gain by it."""

    def __init__(self) -> None:
        with ui.element("section").classes("card list dense compression") as self._card:
            ui.html("Compression", sanitize=False, tag="h2")
            self._now = ui.label("").classes("said mono")
            self._hint = ui.label("").classes("said tone-warn")
            self._table = Table(_COLUMNS, label="changes of compression", empty="No scheme has changed")
        self._card.set_visibility(False)

    def draw(self, detail: JobDetail) -> None:
        """Show what holds now."""
        panel = present_compression.compression(detail)
        self._card.set_visibility(bool(panel["known"]))
        if not panel["known"]:
            return
        for label, text in ((self._now, str(panel["now"])), (self._hint, str(panel["hint"]))):
            label.set_text(text)
            label.set_visibility(bool(text))
        self._table.show(rows=panel["rows"])
