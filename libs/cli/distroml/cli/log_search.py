"""`job logs --search …`: lines of a job by words, time and level, from wherever this installation keeps them."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Final

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli.client import Plane
from distroml.cli.errors import UsageError

NEWEST: Final = 200
"""How many matches are shown where nobody says how many."""

_PAGE: Final = 1000
# 0 stands for no limit in a request.
_FIRST_MS: Final = 1
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment_ms(text: str, option: str, *, now_ms: int | None = None) -> int:
    """Unix milliseconds of `10m` ago, or of a time such as `2026-11-26T08:00`, of this machine where it has no zone.

    Raises:
        UsageError: it is neither.
    """
    if ago := re.fullmatch(r"(\d+)([smhd])", text.strip()):
        now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return max(_FIRST_MS, now - int(ago[1]) * _UNITS_S[ago[2]] * 1000)
    try:
        return max(_FIRST_MS, int(datetime.fromisoformat(text.strip()).astimezone(UTC).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r} is no time", hint="give 10m, 2h or 1d for so long ago, or 2026-11-26T08:00"
        ) from None


async def search(plane: Plane, request: t.SearchLogsRequest, newest: int) -> AsyncGenerator[t.LogRecord]:
    """Matching lines, oldest first: the newest so many, or all for 0."""
    if newest:
        found: list[t.LogRecord] = []
        async for record in _pages(plane, request, newest):
            found.append(record)
        for record in reversed(found):
            yield record
        return
    async for record in _pages(plane, request, 0):
        yield record


async def _pages(plane: Plane, request: t.SearchLogsRequest, most: int) -> AsyncGenerator[t.LogRecord]:
    wanted = t.SearchLogsRequest()
    wanted.CopyFrom(request)
    wanted.newest_first = most > 0
    left = most
    while True:
        wanted.page_size = min(_PAGE, left) if most else _PAGE
        page = await plane.telemetry.SearchLogs(wanted)
        for record in page.records:
            yield record
        left -= len(page.records)
        wanted.page_token = page.next_page_token
        if not page.next_page_token or (most and left <= 0):
            return
