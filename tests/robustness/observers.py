"""What the servers that only look on have of a job and its services: lines, spans and metrics."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from contextlib import suppress
from typing import Any

from deploy.stack import Running
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import client
from distroml.cli.log_search import search
from tests.e2e.conftest import Plane

OBSERVERS = ("elasticsearch", "jaeger", "prometheus", "postgres")


def lines_of(plane: Plane, job: str, rank: int) -> list[int]:
    """Numbers of the lines of `jobs/steady.py` that Elasticsearch has, in its order."""

    async def ask(stubs: client.Plane) -> list[int]:
        wanted = t.SearchLogsRequest(job=job, text="line", ranks=[rank])
        return [int(line.text.split()[1]) async for line in search(stubs, wanted, 0)]

    return client.call(plane.folder.path, ask)


def traced(jaeger: Running) -> set[str]:
    """Whose spans Jaeger has."""
    return set(_get(jaeger, "/api/services").get("data") or ())


def scraped(prometheus: Running) -> int:
    """How many targets Prometheus has reached just now."""
    found = _get(prometheus, f"/api/v1/query?{urllib.parse.urlencode({'query': 'sum(up)'})}")
    return sum(int(series["value"][1]) for series in found.get("data", {}).get("result", ()))


def _get(server: Running, path: str) -> dict[str, Any]:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        return json.load(answer)
    return {}
