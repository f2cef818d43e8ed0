"""What slots were used for: by project and day, and the jobs that used most. Loaded, not live."""

from __future__ import annotations

from datetime import date, timedelta

from nicegui import ui

from distroml.telemetry.dashboard.elements import Row, Table
from distroml.telemetry.dashboard.layout import Sources, frame, now_ms
from distroml.telemetry.domain.usage import DAY_MS, HOUR_S, Price
from distroml.telemetry.history.port import Used

DAYS = 30
_ROWS = 200
_EPOCH = date(1970, 1, 1)


class CostPage:
    """The last 30 days (UTC), today too."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def build(self) -> None:
        """Make the page."""
        history, now = self._sources.model.history, now_ms()
        days = (now // DAY_MS - DAYS + 1, now // DAY_MS)
        by_day = await history.used(("project", "day"), days=days, now_ms=now)
        by_job = await history.used(("job", "project"), days=days, now_ms=now)
        with frame(self._sources, "Cost · DistroML", crumb="Cost"):
            pass
        with ui.element("main").classes("grid even"):
            self._table("By project and day", "day", sorted(by_day, key=lambda u: (-u.day, u.project)))
            self._table("By job, most first", "job", sorted(by_job, key=lambda u: -u.slot_ms))

    def _table(self, title: str, key: str, used: list[Used]) -> None:
        price = self._sources.price
        columns: list[Row] = [
            {"key": "first", "label": key.capitalize(), "kind": "mono"},
            {"key": "project", "label": "Project", "kind": "text"},
            {"key": "hours", "label": "Slot-hours", "kind": "text", "align": "right"},
        ]
        if price is not None:
            columns.append({"key": "money", "label": price.currency, "kind": "text", "align": "right"})
        with ui.element("section").classes("card list dense"):
            ui.html(title, sanitize=False, tag="h2")
            table = Table(columns, label=title.lower(), empty=f"No slots were held in the last {DAYS} days")
        table.show(rows=[_row(one, key, price) for one in used[:_ROWS]])


def cost_fact(slot_ms: int, price: Price | None) -> Row:
    """A job's slot-hours as a labelled value."""
    money = f"{price.of(slot_ms)} {price.currency}" if price else ""
    return {"key": "cost", "label": "Slot-hours", "value": _hours(slot_ms) if slot_ms else "–", "sub": money}


def _row(used: Used, key: str, price: Price | None) -> Row:
    first = used.job if key == "job" else (_EPOCH + timedelta(days=used.day)).isoformat()
    return {
        "id": f"{first} {used.project}",
        "first": first,
        "project": used.project,
        "hours": _hours(used.slot_ms),
        "money": price.of(used.slot_ms) if price else "",
    }


def _hours(slot_ms: int) -> str:
    return f"{slot_ms / (1000 * HOUR_S):,.3f}"
