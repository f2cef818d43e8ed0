"""A process that saves and collects, killed again and again: `python -m … ROOT NAME:NTH …`.

Everything is imported once; each kill happens to a fork, in a data folder of its own below ROOT. `NAME:0` is not
killed and prints how often NAME was passed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.checkpoint.adapters.codecs import repository
from distroml.checkpoint.adapters.fence import Fences
from distroml.checkpoint.catalogues import Catalogues
from distroml.checkpoint.domain.commands import BeginSave, ReportShard
from distroml.checkpoint.objects import Objects
from distroml.eventstore.sqlite import open_event_store
from distroml.manifest import Keys
from distroml.objectstore.filesystem import open_object_store
from distroml.statestore import failpoint
from distroml.statestore.sqlite import open_state_store
from services.checkpoint.tests.workers import Workers

JOB = "job-a"
STEPS = (10, 20, 30)


class Plane:
    """The catalogue on a data folder, without a server."""

    def __init__(self, data: Path) -> None:
        self.events = open_event_store(data / "control.sqlite", deployment="dep-1")
        self.keys = open_state_store(data / "control.sqlite", deployment="dep-1")
        self.objects = open_object_store(data / "objects")
        self.repository = repository(self.events)
        self.catalogues = Catalogues(
            self.repository,
            Fences(self.keys, self.events),
            Objects(self.objects),
            deployment="dep-1",
            now_ms=lambda: 1_000,
        )

    async def begin(self, step: int) -> pb.BeginSaveResponse:
        state = await self.catalogues.begin(
            BeginSave(at_ms=1_000, job=JOB, project="p", generation=1, step=step, world_size=2, keep=1)
        )
        assert state.open is not None
        save = state.open
        return pb.BeginSaveResponse(
            save_id=save.save_id,
            base_manifest_hash=save.base_manifest_hash,
            object_prefix=Keys(JOB).data_of(save.save_id),
        )

    async def report(self, request: pb.ReportShardRequest) -> None:
        await self.catalogues.report(
            JOB,
            ReportShard(
                at_ms=1_000,
                generation=1,
                step=request.step,
                rank=request.rank,
                world_size=2,
                shard_key=request.shard_key,
                shard_hash=request.shard_hash,
                bytes_written=request.bytes_written,
                bytes_reused=request.bytes_reused,
                seconds=0.0,
            ),
        )

    async def save(self, step: int) -> None:
        workers = Workers(self.objects, JOB)
        opened = await self.begin(step)
        for rank in (0, 1):
            await self.report(workers.write(rank, step, opened))

    async def close(self) -> None:
        await self.events.close()
        await self.keys.close()


async def scenario(data: Path) -> None:
    plane = Plane(data)
    for step in STEPS:
        await plane.save(step)
        await plane.catalogues.collect(JOB)
        await plane.catalogues.sweep(JOB)
    await plane.close()


def main() -> None:
    root = Path(sys.argv[1])
    for spec in sys.argv[2:]:
        name, _, nth = spec.partition(":")
        data = root / spec.replace(":", "-")
        data.mkdir()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            armed = failpoint._armed
            assert armed is not None, "start with DISTROML_FAILPOINT=any:count"
            armed._name, armed._nth, armed._signal = name, int(nth), signal.SIGKILL if int(nth) else None
            asyncio.run(scenario(data))
            print(name, armed.hits, flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        expected = 0 if nth == "0" else signal.SIGKILL
        if (os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)) != expected:
            sys.exit(f"{spec} ended with status {status}")


if __name__ == "__main__":
    main()
