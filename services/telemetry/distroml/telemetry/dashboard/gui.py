"""The few calls of NiceGUI that its own annotations leave half typed, with ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from nicegui import app, background_tasks, ui
from nicegui.client import Client

_app, _background, _ui = cast(Any, app), cast(Any, background_tasks), cast(Any, ui)


def in_background(work: Coroutine[Any, Any, None], name: str) -> Callable[[], object]:
    """Run `work` beside the page; returns what cancels it. Failures are logged by NiceGUI's handler."""
    return _background.create(work, name=name).cancel


def in_page(work: Callable[[], Awaitable[None]], name: str) -> None:
    """Run `work` in the background as part of the page that this is called in."""
    client = ui.context.client

    async def run() -> None:
        with client:
            await work()

    in_background(run(), name)


def on_delete(client: Client, callback: Callable[[], object]) -> None:
    """Call when the page is closed for good."""
    cast(Any, client).on_delete(callback)


def on_exception(callback: Callable[[Exception], None]) -> None:
    """Call with what a page raised after it was sent."""
    _app.on_exception(callback)


def run_with(outer: object, **options: object) -> None:
    """Mount NiceGUI in `outer`."""
    _ui.run_with(outer, **options)
