"""The dashboard's own elements: a Python half that holds what is shown, and a Vue half under `components/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from nicegui import ui
from nicegui.element import Element
from nicegui.events import GenericEventArguments

Row = Mapping[str, object]


class _Shown(Element):
    """An element whose props are sent again only where they changed."""

    def show(self, **props: object) -> None:
        """Show these values; nothing is sent where they are what is shown already."""
        shown = cast("dict[str, object]", self._props)
        changed = {name: value for name, value in props.items() if shown.get(name) != value}
        if changed:
            self._props.update(changed)
            self.update()


class Table(_Shown, component="components/dml_table.js", dependencies=["components/dml_format.js"]):
    """Rows of typed cells; `columns` name each cell's key, label and kind."""

    def __init__(self, columns: Sequence[Row], *, label: str, empty: str, hint: str = "") -> None:
        super().__init__()
        self._props.update(columns=list(columns), rows=[], label=label, empty=empty, hint=hint)


class Tiles(_Shown, component="components/dml_tiles.js"):
    """Counts that filter."""

    def __init__(self, *, label: str, on_pick: Callable[[str], object]) -> None:
        super().__init__()
        self._props.update(items=[], label=label)
        self.on("pick", lambda e: on_pick(_text(e)))


class Search(_Shown, component="components/dml_search.js"):
    """A search field."""

    def __init__(self, value: str, *, placeholder: str, on_change: Callable[[str], object]) -> None:
        super().__init__()
        self._props.update(value=value, placeholder=placeholder)
        self.on("change", lambda e: on_change(_text(e)))


class Pager(_Shown, component="components/dml_pager.js"):
    """Pages of a list."""

    def __init__(self, size: int, *, on_page: Callable[[int], object]) -> None:
        super().__init__()
        self._props.update(page=1, size=size, total=0)
        self.on("page", lambda e: on_page(e.args if isinstance(e.args, int) else 1))


class Facts(_Shown, component="components/dml_facts.js"):
    """Labelled values."""

    def __init__(self) -> None:
        super().__init__()
        self._props.update(items=[])


class Head(_Shown, component="components/dml_head.js"):
    """Name, state and progress of a job."""

    def __init__(self, job: Row) -> None:
        super().__init__()
        self._props.update(job=job)


class Plan(_Shown, component="components/dml_plan.js"):
    """The plan of a job's newest generation, in words and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._props.update(plan={"known": False})


class Status(_Shown, component="components/dml_status.js"):
    """Whether the page is live, what is away, light or dark."""

    def __init__(self) -> None:
        super().__init__()
        self._props.update(notice="", tone="warn")


class Events(Element, component="components/dml_events.js"):
    """Events, newest first."""

    def __init__(self, events: Sequence[Row]) -> None:
        super().__init__()
        self._props.update(initial=list(events))

    def prepend(self, events: Sequence[Row]) -> None:
        """Newer events, newest first."""
        self.run_method("prepend", list(events))


class LogSearch(_Shown, component="components/dml_log_search.js", dependencies=["components/dml_lines.js"]):
    """Kept lines by what is asked for; `on_search` gets `text`, `rank`, `level`, `within_s` and `older`."""

    def __init__(self, *, levels: Sequence[str], on_search: Callable[[Row], object]) -> None:
        super().__init__()
        self._props.update(ranks=[], levels=list(levels))

        def asked(e: GenericEventArguments) -> object:
            given: object = e.args
            return on_search(cast("dict[str, object]", given) if isinstance(given, dict) else {})

        # Not `search`: browsers have an event of that name.
        self.on("ask", asked)

    def found(self, lines: Sequence[Row], *, more: bool, older: bool) -> None:
        """Show these lines, after the others where they are older ones; whether there are more yet."""
        self.run_method("show", list(lines), more, older)

    def refuse(self, why: str) -> None:
        """Show why there is nothing to be shown."""
        self.run_method("refuse", why)


class Logs(_Shown, component="components/dml_logs.js", dependencies=["components/dml_lines.js"]):
    """Lines of the workers; `on_filter(rank or -1, text)`."""

    def __init__(self, *, on_filter: Callable[[int, str], object]) -> None:
        super().__init__()
        self._props.update(ranks=[], note="")

        def filtered(e: GenericEventArguments) -> object:
            given: object = e.args
            args = cast("dict[str, object]", given) if isinstance(given, dict) else dict[str, object]()
            rank, text = args.get("rank"), args.get("text")
            return on_filter(rank if isinstance(rank, int) else -1, text[:256] if isinstance(text, str) else "")

        self.on("filter", filtered)

    def replace(self, lines: Sequence[Row]) -> None:
        """Show these lines only."""
        self.run_method("replace", list(lines))

    def append(self, lines: Sequence[Row]) -> None:
        """Show these lines after the others."""
        self.run_method("append", list(lines))


class Chart(ui.echart, component="components/dml_chart.js"):
    """Lines over the step axis, drawn by the bundled echarts; points are appended, never sent twice."""

    def __init__(self, options: Row, *, on_overflow: Callable[[], object]) -> None:
        cast(Any, super()).__init__(dict(options))
        for name in ("enable-3d", "renderer", "theme"):
            self._props.pop(name, None)
        self.on("overflow", lambda _: on_overflow())

    def rename(self, series: int, label: str) -> None:
        """Call a series something else."""
        options = cast("dict[str, Any]", self._props["options"])
        kept: list[Row] = list(options["series"])
        kept[series] = {**kept[series], "label": label}
        self._props["options"] = {**options, "series": kept}
        self.update()

    def replace(self, data: Sequence[Sequence[Sequence[float]]], marks: Sequence[Row]) -> None:
        """Show these points only."""
        self.run_method("replace", data, marks)

    def append(self, data: Sequence[Sequence[Sequence[float]]], marks: Sequence[Row] | None) -> None:
        """Add points to each series; those of a repeated step replace what stood from there on."""
        self.run_method("append", data, marks)


def _text(event: GenericEventArguments) -> str:
    return event.args[:256] if isinstance(event.args, str) else ""
