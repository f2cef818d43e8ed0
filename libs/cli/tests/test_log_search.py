from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli.errors import UsageError
from distroml.cli.log_search import moment_ms, search

NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("90s", NOW_MS - 90_000),
        ("2h", NOW_MS - 7_200_000),
        ("99999999d", 1),
        ("1960-01-01T00:00+00:00", 1),
        ("2026-11-26T08:00+00:00", 1_795_680_000_000),
        ("2026-11-26T08:00:00.250Z", 1_795_680_000_250),
    ],
)
def test_a_moment_is_so_long_ago_or_a_time(text: str, ms: int) -> None:
    assert moment_ms(text, "--since", now_ms=NOW_MS) == ms


@pytest.mark.parametrize("text", ["yesterday", "5", "-1h", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--since .* is no time"):
        moment_ms(text, "--since")


class Telemetry:
    """2,500 matching lines."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def SearchLogs(self, request: t.SearchLogsRequest) -> t.SearchLogsResponse:
        self.sizes.append(request.page_size)
        numbers = list(range(2500))
        if request.newest_first:
            numbers.reverse()
        at = int(request.page_token or 0)
        page = numbers[at : at + request.page_size]
        token = str(at + len(page)) if at + len(page) < len(numbers) else ""
        return t.SearchLogsResponse(records=[t.LogRecord(offset=n) for n in page], next_page_token=token)


@pytest.mark.parametrize(
    ("newest", "shown", "sizes"),
    [
        (200, range(2300, 2500), [200]),
        (1500, range(1000, 2500), [1000, 500]),
        (5000, range(2500), [1000, 1000, 1000]),
        (0, range(2500), [1000, 1000, 1000]),
    ],
)
async def test_matches_come_oldest_first_as_many_as_asked_for(newest: int, shown: range, sizes: list[int]) -> None:
    plane: Any = SimpleNamespace(telemetry=(telemetry := Telemetry()))
    found = [record.offset async for record in search(plane, t.SearchLogsRequest(text="x"), newest)]
    assert found == list(shown)
    assert telemetry.sizes == sizes
