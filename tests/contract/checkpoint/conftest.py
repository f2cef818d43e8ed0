from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from distroml.events import fresh_id
from services.checkpoint.tests.workers import Workers
from tests.contract.targets import Running


@dataclass
class Catalogue:
    """One job's catalogue to its clients, and the workers that save for it."""

    service: Running
    stub: Any
    workers: Workers

    @property
    def job(self) -> str:
        return self.workers.job

    async def save(self, step: int, keep: int = 9) -> str:
        """Every rank saves; the manifest's hash."""
        opened = await self.stub.BeginSave(self.workers.begin(step, keep))
        answers = [
            await self.stub.ReportShard(self.workers.write(rank, step, opened))
            for rank in range(self.workers.world_size)
        ]
        assert [(answer.committed, answer.missing) for answer in answers] == [(False, 1), (True, 0)]
        return answers[-1].manifest_hash


@pytest.fixture
def named() -> str:
    return "checkpoint"


@pytest.fixture
async def catalogue(service: Running) -> AsyncIterator[Catalogue]:
    async with service.channel(actor="agent") as channel:
        yield Catalogue(service, CheckpointServiceStub(channel), Workers(service.objects, job=fresh_id("job")))
