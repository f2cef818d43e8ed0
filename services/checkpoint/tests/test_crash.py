"""SIGKILL at every point of save, report, commit and collect: a checkpoint is there whole or not at all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from distroml.checkpoint.domain.state import Phase
from distroml.checkpoint.reactor import Keeper
from distroml.checkpoint.retiring import retirement
from distroml.eventstore.replay import verify
from distroml.manifest import Keys
from distroml.observability.tracing import Tracing
from services.checkpoint.tests.conftest import eventually
from services.checkpoint.tests.crashing import JOB, STEPS, Plane
from services.checkpoint.tests.workers import loadable

POINTS = ("checkpoint.report", "checkpoint.manifest", "checkpoint.committed", "checkpoint.sweep")
# Inside a put or a commit every point is killed by those stores' own tests; here some of them, to see them together.
SAMPLED = {"object.put": 6, "sqlite.statement": 8}


def run(root: Path, *specs: str) -> dict[str, int]:
    root.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "services.checkpoint.tests.crashing", str(root), *specs],
        env=os.environ | {"DISTROML_FAILPOINT": "none:count"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return {name: int(count) for name, count in (line.split() for line in done.stdout.splitlines() if line)}


async def check(data: Path) -> str:
    """What the kill left, what the service makes of it, and that the job goes on; returns the newest step left."""
    plane = Plane(data)
    try:
        left = await plane.catalogues.load(JOB)
        for checkpoint in left.present:
            loadable(plane.objects, JOB, checkpoint.manifest_hash)
        newest = left.newest_sound()
        deleted = [c for c in left.checkpoints if c.phase is Phase.DELETED]
        assert not deleted or newest is not None, "the last checkpoint is gone"
        # The agent reports again what lies on its disk; the reactor finishes what was begun.
        if left.open is not None:
            await plane.save(left.open.step)
        last = left.step
        for step in (*(step for step in STEPS if step > last), 40):
            await plane.save(step)
        idle = retirement(plane.repository, after_s=3600)
        keeper = Keeper(plane.events, plane.keys, plane.catalogues, idle, Tracing("checkpoint"), holder="k", ttl_s=5)
        task = asyncio.create_task(keeper.run())

        async def clean() -> bool:
            state = await plane.catalogues.load(JOB)
            needed = {Keys(JOB).manifest(c.manifest_hash) for c in state.present}
            for checkpoint in state.present:
                needed |= plane.catalogues._objects.reach(JOB, checkpoint.manifest_hash) or set()
            # Equal: nothing lost, and nothing left behind but the shard manifests of the newest save.
            found = {info.key for info in plane.objects.list(Keys(JOB).root)}
            shards = {key for key in found if f"/shards/{state.checkpoints[-1].save_id}/" in key}
            return len(state.present) == 1 and found - shards == needed

        try:
            await eventually(clean)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        state = await plane.catalogues.load(JOB)
        assert state.newest_sound() is not None
        assert state.newest_sound().step == 40  # type: ignore[union-attr]
        assert loadable(plane.objects, JOB, state.checkpoints[-1].manifest_hash)["model.frozen0"] == b"frozen00"
        kind = plane.repository
        assert await verify(plane.events, kind.decider, kind.codec, kind.state_codec, [f"checkpoint/job/{JOB}"]) == []
        return str(newest.step if newest else 0)
    finally:
        await plane.close()


async def test_every_kill_leaves_whole_checkpoints_and_a_job_that_goes_on(tmp_path: Path):
    counts = run(tmp_path / "counted", *(f"{name}:0" for name in (*POINTS, *SAMPLED)))
    specs = [f"{name}:{nth}" for name in POINTS for nth in range(1, counts[name] + 1)]
    for name, wanted in SAMPLED.items():
        assert counts[name] > wanted
        specs += [f"{name}:{1 + index * counts[name] // wanted}" for index in range(wanted)]
    assert all(counts[name] >= 3 for name in POINTS), counts
    run(tmp_path / "killed", *specs)
    turns = asyncio.Semaphore(8)

    async def one(spec: str) -> str:
        async with turns:
            return await check(tmp_path / "killed" / spec.replace(":", "-"))

    left = dict(zip(specs, await asyncio.gather(*(one(spec) for spec in specs)), strict=True))
    # The kills were spread over the whole scenario.
    assert set(left.values()) == {"0", "10", "20", "30"}, left
