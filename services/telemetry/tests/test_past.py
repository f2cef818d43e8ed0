"""What history answers is bounded, whatever there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.rpc.errors import InvalidArgument
from distroml.telemetry.history.port import MAX_USED, Used
from distroml.telemetry.past import Past


class Jobs:
    """A history of so many jobs that were given slots."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self.given = 0

    async def cursor(self) -> None:
        return None

    async def used(self, by: list[str], *, limit: int = 1 << 40, **_: object) -> list[Used]:
        self.given = min(limit, self._jobs)
        return [Used(job=f"job-{n}", project="", day=0, slot_ms=3_600_000) for n in range(self.given)]


def past(jobs: Jobs) -> Past:
    return Past(cast(Any, SimpleNamespace(history=jobs)), cast(Any, None))


async def test_more_sums_than_an_answer_holds_are_refused_and_never_loaded() -> None:
    request = t.GetCostRequest(by=["job"], to_day=30)
    answer = await past(Jobs(MAX_USED)).cost(request)
    assert len(answer.rows) == MAX_USED
    assert answer.ByteSize() < 4 << 20
    jobs = Jobs(1_000_000)
    with pytest.raises(InvalidArgument, match="ask for fewer days"):
        await past(jobs).cost(request)
    assert jobs.given == MAX_USED + 1
