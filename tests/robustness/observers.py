"""What the servers that only look on have of a job and its services: lines, spans and metrics."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from deploy.stack import Running
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import client
from distroml.cli.log_search import search
from tests.e2e.conftest import Plane, wait_for
from tests.robustness.stack import troubles

OBSERVERS = ("elasticsearch", "jaeger", "prometheus", "postgres")


def lines_of(plane: Plane, job: str, rank: int) -> list[int]:
    """Numbers of the lines of `jobs/steady.py` that Elasticsearch has, in its order."""

    async def ask(stubs: client.Plane) -> list[int]:
        wanted = t.SearchLogsRequest(job=job, text="line", ranks=[rank])
        return [int(line.text.split()[1]) async for line in search(stubs, wanted, 0)]

    return client.call(plane.folder.path, ask)


def has_lines_once(plane: Plane, job: str, count: Mapping[int, int]) -> None:
    """Wait until Elasticsearch has so many lines of each rank: none is lost and none is there twice."""
    for rank, least in count.items():
        wait_for(lambda r=rank, n=least: len(lines_of(plane, job, r)) >= n, 120, lambda: f"{troubles(plane, 'agent')}")
        there = lines_of(plane, job, rank)
        missing, twice = (
            set(range(1, max(there) + 1)) - set(there),
            [n for n, times in Counter(there).items() if times > 1],
        )
        assert (missing, twice) == (set(), []), f"of {len(there)} lines of rank {rank} lacks {missing}, twice {twice}"


def traced(jaeger: Running) -> set[str]:
    """Whose spans Jaeger has."""
    return set(_get(jaeger, "/api/services").get("data") or ())


def scraped(prometheus: Running) -> int:
    """How many targets Prometheus has reached, and kept what they say, just now: within two rounds and a bit."""
    query = urllib.parse.urlencode({"query": "sum(last_over_time(up[12s]))"})
    found = _get(prometheus, f"/api/v1/query?{query}")
    return sum(int(series["value"][1]) for series in found.get("data", {}).get("result", ()))


def _get(server: Running, path: str) -> dict[str, Any]:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        return json.load(answer)
    return {}
