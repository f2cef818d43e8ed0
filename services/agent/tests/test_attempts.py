"""Attempts against the real wire, with real holders and real small workers."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from distroml.api.common.v1 import common_pb2 as common
from distroml.api.scheduler.v1 import nodes_pb2 as nodes
from services.agent.tests.conftest import World
from services.agent.tests.plane import until

PLAIN = """
    import os, sys
    print("hello from", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "in", os.environ["DISTROML_GENERATION"])
    print("arguments", sys.argv[1:], file=sys.stderr)
"""


async def test_a_plain_script_runs_to_its_end(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    bundle = world.bundle({"train.py": PLAIN})
    plane.scheduler.want(world.attempt(agent.id, bundle, "train.py", "--x", "1"))
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert plane.scheduler.phases("job-1") == ["RUNNING", "STOPPED"]
    assert plane.rendezvous.closed is not None
    assert plane.rendezvous.closed.outcome == "Succeeded"
    assert [(e.code, e.signal, e.expected) for e in plane.rendezvous.exits()] == [(0, 0, False)] * 2
    assert {s.start for s in plane.rendezvous.starts()} == {"cold"}
    assert all(s.why_cold for s in plane.rendezvous.starts())
    await until(lambda: len(plane.telemetry.lines()) == 2)
    assert sorted(plane.telemetry.lines()) == ["hello from 0 of 2 in 1", "hello from 1 of 2 in 1"]
    assert plane.telemetry.lines("stderr") == ["arguments ['--x', '1']"] * 2
    assert plane.checkpoints.asked == [1]
    plane.scheduler.want()
    await until(lambda: plane.scheduler.desired.revision in plane.scheduler.applied)


async def test_a_killed_worker_breaks_the_generation_and_both_start_anew(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    script = """
        import os, time
        print(os.environ["RANK"], os.environ["MASTER_PORT"])
        if os.environ["DISTROML_GENERATION"] == "1":
            time.sleep(60)
    """
    plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": script}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    killed_at = time.monotonic()
    os.kill(plane.rendezvous.pids()[1], signal.SIGKILL)
    await until(lambda: plane.rendezvous.exits())
    heard_s = time.monotonic() - killed_at
    assert heard_s < 0.5
    await until(lambda: plane.rendezvous.closed is not None)
    first, second = plane.rendezvous.exits()[:2]
    assert (first.rank, first.signal, first.expected) == (1, 9, False)
    assert first.category == common.FAILURE_CATEGORY_SIGNAL
    assert (second.rank, second.expected) == (0, True)
    assert "generation 1 broke" in second.message
    assert plane.rendezvous.closed.outcome == "Succeeded"
    # A plain script finds a store that no earlier generation wrote to.
    endpoints = {join.store_endpoint for join in plane.rendezvous.joins}
    assert len(endpoints) == 2
    assert plane.rendezvous.formed.store_endpoint == plane.rendezvous.joins[-1].store_endpoint


@pytest.mark.parametrize(
    ("raised", "category", "text"),
    [
        ("ValueError('no such column: price')", "EXCEPTION", "ValueError: no such column: price"),
        ("MemoryError('8 GiB for the batch')", "OUT_OF_MEMORY", "MemoryError: 8 GiB for the batch"),
    ],
)
async def test_an_exception_is_reported_with_its_text_and_kind_and_ends_the_job(
    world: World, raised: str, category: str, text: str
) -> None:
    agent = await world.agent()
    plane = world.plane
    plane.rendezvous.failures_left = 0
    script = f"""
        import os, time
        if os.environ["RANK"] == "0":
            raise {raised}
        time.sleep(60)
    """
    plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": script}), "t.py"))
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    failed = next(e for e in plane.rendezvous.exits() if not e.expected)
    assert failed.category == common.FailureCategory.Value(f"FAILURE_CATEGORY_{category}")
    assert failed.message == text
    assert 'File "' in failed.traceback
    stopped = plane.scheduler.observations[-1]
    assert stopped.phase == nodes.ATTEMPT_PHASE_STOPPED
    assert text in stopped.message


@pytest.mark.parametrize(
    ("files", "command", "spec", "text"),
    [
        ({"t.py": ""}, ("t.py",), {"python": "/no/such/python"}, "no interpreter /no/such/python"),
        ({"t.py": ""}, ("t.py",), {"env": {"KEY": "secret:missing"}}, "KEY=secret:missing"),
        (None, ("t.py",), {}, "cannot fetch bundle"),
    ],
)
async def test_what_cannot_run_here_is_said_with_its_reason(
    world: World, files: dict[str, str] | None, command: tuple[str, ...], spec: dict[str, object], text: str
) -> None:
    agent = await world.agent()
    bundle = world.bundle(files) if files is not None else "0" * 64
    world.plane.scheduler.want(world.attempt(agent.id, bundle, *command, **spec))
    await until(lambda: "FAILED" in world.plane.scheduler.phases("job-1"))
    failed = world.plane.scheduler.observations[-1]
    assert failed.category == common.FAILURE_CATEGORY_SETUP
    assert text in failed.message


async def test_a_script_that_does_not_exist_is_python_s_own_error(world: World) -> None:
    agent = await world.agent()
    world.plane.rendezvous.failures_left = 0
    world.plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": ""}), "other.py", workers=1))
    await until(lambda: world.plane.rendezvous.exits())
    assert world.plane.rendezvous.exits()[0].code == 2
    assert "can't open file" in world.plane.rendezvous.exits()[0].message
    await world.plane.scheduler.stopped("job-1", world.plane.rendezvous)


async def test_a_stop_order_ends_politely_then_by_force(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    script = """
        import os, signal, time
        if os.environ["RANK"] == "0":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("up", flush=True)
        time.sleep(60)
    """
    wanted = world.attempt(agent.id, world.bundle({"t.py": script}), "t.py")
    plane.scheduler.want(wanted)
    await until(lambda: len(plane.telemetry.lines()) == 2)
    wanted.stop.CopyFrom(nodes.StopOrder(reason="Cancelled", grace_s=1))
    plane.scheduler.want(wanted)
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    by_rank = {e.rank: e for e in plane.rendezvous.exits()}
    assert (by_rank[1].signal, by_rank[0].signal) == (signal.SIGTERM, signal.SIGKILL)
    assert all(e.expected and "Cancelled" in e.message for e in by_rank.values())
    await until(lambda: plane.rendezvous.leaves == ["Cancelled"])


async def test_the_control_plane_may_be_away_for_a_while(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    script = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')"
    plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": script}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    await plane.stop()
    (world.data / "node/workers/job-1.1/code/go").touch()
    await until(lambda: len(list((world.data / "node/workers/job-1.1").glob("*.*/exit.json"))) == 2)
    await asyncio.sleep(0.2)
    assert not plane.rendezvous.exits()
    await plane.start()
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert plane.rendezvous.closed is not None
    assert plane.rendezvous.closed.outcome == "Succeeded"
    await until(lambda: len(plane.telemetry.lines()) == 2)
