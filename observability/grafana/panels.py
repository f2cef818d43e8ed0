"""What a dashboard is made of, in few words, and its form in Grafana's own: every dashboard looks and acts alike.

In a query, `%` stands for the labels that the page's choices ask for: `metric{%}`, `metric{%,state="held"}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model

WIDTH: Final = 24
HEIGHT: Final = 8
_SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_EVERYTHING: Final = ".*"

DEPLOYMENT: Final = 'label_values(up{job="distroml"}, deployment)'
CHOICES: Final[Mapping[str, str]] = {
    "job_id": 'label_values(distroml_train_step{deployment=~"$deployment"}, job_id)',
    "service": 'label_values(up{job="distroml",deployment=~"$deployment"}, service)',
}
"""What a page may let its reader choose besides the deployment, and where the choices come from."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query and what its lines are called, labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart, or where `single` one number; `text` says what it shows and what to make of it."""

    title: str
    text: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    stacked: bool = False
    single: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A dashboard: rows of panels by heading. `choice` is what its reader chooses besides the deployment."""

    uid: str
    title: str
    text: str
    rows: Mapping[str, Sequence[Panel]]
    choice: str = ""


def dashboard(page: Page) -> model.Dashboard:
    """The page as Grafana has it."""
    made = (
        build.Dashboard(page.title)
        .uid(page.uid)
        .description(page.text)
        .tags(["distroml"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("DistroML")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["distroml"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("deployment", DEPLOYMENT))
    )
    if page.choice:
        made = made.with_variable(_variable(page.choice, CHOICES[page.choice]))
    for heading, panels in page.rows.items():
        made = made.with_row(build.Row(heading))
        for panel in panels:
            made = made.with_panel(_panel(panel, page.choice))
    return made.build()


def _variable(name: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(name.replace("_", " "))
        .query({"query": query, "refId": name})
        .datasource(_SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(_EVERYTHING)
        .current(model.VariableOption(text="All", value="$__all", selected=True))
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def _panel(panel: Panel, choice: str) -> stat.Panel | timeseries.Panel:
    if panel.single:
        made: stat.Panel | timeseries.Panel = stat.Panel().reduce_options(
            common_builder.ReduceDataOptions().calcs(["lastNotNull"])
        )
    else:
        lines = timeseries.Panel().line_width(1).axis_soft_min(0).show_points(common.VisibilityMode.NEVER)
        if panel.stacked:
            lines = lines.fill_opacity(40).stacking(common_builder.StackingConfig().mode(common.StackingMode.NORMAL))
        made = lines.legend(
            common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
        )
    made = made.title(panel.title).description(panel.text).unit(panel.unit).datasource(_SOURCE)
    made = made.height(HEIGHT).span(panel.width)
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(_narrowed(query.expr, choice)).legend_format(query.legend)
        made = made.with_target(target.ref_id(chr(ord("A") + index)))
    return made


def _narrowed(expr: str, choice: str) -> str:
    chosen = [f'{name}=~"${name}"' for name in ("deployment", choice) if name]
    return expr.replace("%", ",".join(chosen))
