"""The plan panel of the job page: text that follows the measurements, and the plan's picture, drawn once per plan."""

from __future__ import annotations

import asyncio

from nicegui import ui

from distroml.planner.picture import draw
from distroml.telemetry.adapters.plans import Chosen
from distroml.telemetry.adapters.summaries import JobDetail, read_use
from distroml.telemetry.dashboard import present_plan
from distroml.telemetry.dashboard.elements import Plan
from distroml.telemetry.readmodel import ReadModel


class PlanPanel:
    """Shows nothing until the job has chosen a plan."""

    def __init__(self, model: ReadModel, job: str) -> None:
        self._model, self._job = model, job
        self._chosen: Chosen | None = None
        with ui.element("section").classes("card plan") as self._card:
            self._text = Plan()
            self._box = ui.element("div").classes("plan-box").props('tabindex=0 aria-label="picture of the plan"')
        self._card.set_visibility(False)

    async def draw(self, detail: JobDetail) -> None:
        """Show where the plan stands now."""
        plans = detail.view.plans
        if not plans:
            return
        if self._chosen is None or self._chosen.generation < plans[-1].generation:
            self._chosen = await self._model.plan(self._job)
            await self._picture()
        use = await self._model.read(read_use, self._job)
        self._text.show(plan=present_plan.plan(detail, self._chosen, use))
        self._card.set_visibility(True)

    async def _picture(self) -> None:
        drawing = self._chosen.drawing if self._chosen is not None else None
        # Thousands of passes take tenths of a second: other pages go on meanwhile.
        svg = "" if drawing is None else await asyncio.to_thread(draw, drawing)
        self._box.clear()
        self._box.set_visibility(bool(svg))
        with self._box:
            # Made here, from numbers and escaped text.
            ui.html(svg, sanitize=False)
