"""History in PostgreSQL beside the log that it was folded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from deploy.stack import Running
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import client
from distroml.events import Recorded
from distroml.rpc.postgres import POSTGRES
from distroml.telemetry.adapters.facts import job_of
from distroml.telemetry.history.folding import PROJECTED_TABLES
from distroml.telemetry.history.postgres import schema_of
from tests.e2e.conftest import Plane
from tests.robustness.stack import WORKERS, Training

_HOUR_MS = 3_600_000


def history_of(plane: Plane, job: str) -> t.GetHistoryResponse:
    """What history tells of a job."""

    async def ask(stubs: client.Plane) -> t.GetHistoryResponse:
        return await stubs.telemetry.GetHistory(t.GetHistoryRequest(job=job))

    return client.call(plane.folder.path, ask)


def is_as_the_log_tells(
    plane: Plane, postgres: Running, training: Training, log: Sequence[Recorded], timeout_s: float
) -> None:
    """Event for event and millisecond for millisecond of a slot, and row for row as a history that is made anew."""
    told = sorted((one.stream, one.version, one.type) for one in log if one.public and job_of(one.stream))
    with _connected(plane, postgres) as server:
        assert sorted(server.execute("SELECT stream, version, type FROM events")) == told
    past = history_of(plane, training.job)
    held_ms = sum(piece.slots * (piece.until_ms - piece.since_ms) for piece in past.held)
    (admitted,), (cancelled,) = training.data("Admitted"), training.data("Cancelled")
    assert held_ms == WORKERS * (int(cancelled["at_ms"]) - int(admitted["at_ms"]))
    (cost,) = plane.cli.json("cost", "--job", training.job)["rows"]
    assert cost["slot_hours"] == pytest.approx(held_ms / _HOUR_MS)
    kept = _folded(plane, postgres)
    assert "history is new" in plane.cli("history", "rebuild", timeout=timeout_s).stdout
    assert _folded(plane, postgres) == kept


def _folded(plane: Plane, postgres: Running) -> Mapping[str, Sequence[str]]:
    """Every row that was folded from the log, by table."""
    with _connected(plane, postgres) as server:
        return {
            table: sorted(map(repr, server.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))))
            for table in (*PROJECTED_TABLES, "meta")
        }


def _connected(plane: Plane, postgres: Running) -> psycopg.Connection[Any]:
    address = postgres.server.settings(postgres.ports)[POSTGRES]
    return psycopg.connect(address, options=f"-c search_path={schema_of(plane.folder.deployment())}")
