"""Saves and questions of a job's workers while the catalogue is away."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc import StatusCode

from distroml.agent.adapters import checkpoints
from distroml.agent.adapters.checkpoints import FAILED, SHARD, Checkpoints, JobFacts
from distroml.agent.spool import Spool
from distroml.api.checkpoint.v1 import checkpoint_pb2 as ckpt
from distroml.rpc import connect
from distroml.workerlink import CheckpointRef, SaveBegun, SaveFailed, ShardSaved, ToWorker
from services.agent.tests.plane import Plane, until

JOB = "job-1"


class Saves:
    """What one agent passes on for a job, and what its worker `w` is told."""

    def __init__(self, plane: Plane, spool: Spool, calls: Checkpoints, told: list[ToWorker]) -> None:
        self.plane, self.spool, self.calls, self._told = plane, spool, calls, told

    def kept(self, kind: str) -> int:
        return len(list(self.spool.pending(kind=kind, group=JOB)))

    def idle(self) -> bool:
        return not self.calls._tasks

    def told(self) -> list[str]:
        return [type(one).__name__ for one in self._told]


@asynccontextmanager
async def saves_on(plane: Plane, folder: Path) -> AsyncGenerator[Saves]:
    channel, spool, told = connect(plane.endpoint, "token"), Spool(folder / "spool"), list[ToWorker]()

    def tell(worker: str, message: ToWorker) -> bool:
        told.append(message)
        return True

    calls = Checkpoints(channel, JobFacts(job=JOB, project="p", keep=3), spool, tell)
    try:
        yield Saves(plane, spool, calls, told)
    finally:
        await calls.close()
        spool.close()
        await channel.close(None)


async def test_the_newest_checkpoint_is_asked_for_as_long_as_the_catalogue_is_away(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ASK_S", 0.0)
    plane.checkpoints.away = [StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED]
    plane.checkpoints.latest = ckpt.Checkpoint(job=JOB, step=40, manifest_hash="abc")
    async with saves_on(plane, tmp_path) as saves:
        assert await saves.calls.latest(7) == CheckpointRef(step=40, manifest_hash="abc")
    assert plane.checkpoints.asked == [7] * 4


async def test_reports_that_were_given_up_are_kept_and_go_when_the_catalogue_answers(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "REPORT_S", 0.1)
    plane.checkpoints.full = {"failed", "shard"}
    async with saves_on(plane, tmp_path) as saves:
        saves.calls.on_failed("w", SaveFailed(generation=1, step=5, rank=0, message="no room"))
        shard = ShardSaved(
            generation=1, step=10, rank=0, world_size=1, shard_key="k", shard_hash="h", bytes_written=1,
            bytes_reused=0, seconds=0.1,
        )  # fmt: skip
        saves.calls.on_shard("w", shard)
        await until(saves.idle)
        assert (saves.kept(FAILED), saves.kept(SHARD)) == (1, 1)
        assert saves.told() == ["CheckpointFailed"]
        monkeypatch.setattr(checkpoints, "REPORT_S", 60.0)
        plane.checkpoints.full = set()
        assert await saves.calls.latest(1) is None
        await until(lambda: plane.checkpoints.failed and plane.checkpoints.shards)
        await until(saves.idle)
        assert (saves.kept(FAILED), saves.kept(SHARD)) == (0, 0)
        assert saves.told() == ["CheckpointFailed", "CheckpointCommitted"]
    assert plane.checkpoints.failed == [(5, 0, "no room")]


async def test_a_save_that_has_no_next_one_waits_for_the_catalogue(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "BEGIN_S", 0.0)
    plane.checkpoints.full = {"begin"}
    async with saves_on(plane, tmp_path) as saves:
        saves.calls.on_begun("w", SaveBegun(generation=1, step=5, world_size=1))
        await until(lambda: saves.told() == ["SaveRefused"])
        saves.calls.on_begun("w", SaveBegun(generation=1, step=6, world_size=1, patience_s=600.0))
        refused = plane.checkpoints.refused
        await until(lambda: plane.checkpoints.refused >= refused + 2)
        plane.checkpoints.full = set()
        await until(lambda: len(saves.told()) == 2)
        assert saves.told() == ["SaveRefused", "SaveOpened"]
