"""The agent ends, in every way; workers, verdicts and reports do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from distroml.agent.adapters.held import read_exit
from distroml.agent.adapters.processes import read_identity
from services.agent.tests.conftest import World
from services.agent.tests.plane import until
from services.agent.tests.test_managed import MANAGED, command, connected, said

WAITING = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')"


def code(world: World) -> Path:
    return world.data / "node/workers/job-1.1/code"


async def test_workers_outlive_an_agent_and_are_found_again(world: World) -> None:
    first = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(first.id, world.bundle({"t.py": WAITING}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    await first.stop()
    second = await world.agent()
    await until(lambda: len(plane.scheduler.hellos) == 2)
    assert second.id == first.id
    assert [(o.job, o.attempt) for o in plane.scheduler.hellos[1].attempts] == [("job-1", 1)]
    await until(lambda: len(plane.rendezvous.joins) >= 2)
    assert plane.rendezvous.joins[-1].running_generation == 1
    assert len(plane.rendezvous.starts()) == 2
    (code(world) / "go").touch()
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert [(e.code, e.expected) for e in plane.rendezvous.exits()] == [(0, False)] * 2
    await until(lambda: plane.telemetry.lines() == ["done", "done"])


async def test_ends_that_nobody_saw_are_reported_by_the_next_agent(world: World) -> None:
    first = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(first.id, world.bundle({"t.py": WAITING}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    await first.stop()
    (code(world) / "go").touch()
    folder = code(world).parent
    await until(lambda: all(read_exit(folder / name) for name in ("0.1", "1.1")))
    await world.agent()
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert sorted((e.rank, e.code) for e in plane.rendezvous.exits()) == [(0, 0), (1, 0)]
    assert len(plane.rendezvous.starts()) == 2


async def test_a_managed_worker_reconnects_and_recovers_with_the_next_agent(world: World) -> None:
    first = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(first.id, world.bundle({"t.py": MANAGED}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    pids = plane.rendezvous.pids()
    await connected(first)
    await first.stop()
    os.kill(pids[0], signal.SIGKILL)
    second = await world.agent()
    await until(lambda: said(plane, "in 2 1"))
    assert os.path.exists(f"/proc/{pids[1]}")
    runner = second.agent._runners["job-1.1"]
    await until(lambda: all(p.process and p.process.connected for p in runner.state.places))
    command(world, "end")
    await plane.scheduler.stopped("job-1", plane.rendezvous)


async def test_the_plane_away_the_new_agent_goes_on_from_its_disk(world: World) -> None:
    first = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(first.id, world.bundle({"t.py": WAITING}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    await plane.stop()
    await first.stop()
    second = await world.agent()
    assert set(second.agent._runners) == {"job-1.1"}
    (code(world) / "go").touch()
    await until(lambda: len(list(second.agent.node.spool.pending(kind="worker_report"))) == 2)
    await plane.start()
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert len(plane.rendezvous.exits()) == 2


async def test_what_is_no_longer_desired_is_ended(world: World) -> None:
    first = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(first.id, world.bundle({"t.py": WAITING}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    await first.stop()
    plane.scheduler.want()
    await world.agent()
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    await until(lambda: plane.scheduler.desired.revision in plane.scheduler.applied)


async def test_down_leaves_nothing_running(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": WAITING}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    (world.data / "node/down").touch()
    await agent.agent.go_down()
    await agent.stop()
    assert plane.rendezvous.leaves == ["Down"]
    assert "STOPPED" in plane.scheduler.phases("job-1")
    identities = [read_identity(path.parent) for path in world.data.rglob("identity.json")]
    assert not [i for i in identities if i is not None and i.worker_lives]


async def test_a_dead_store_host_is_replaced_and_announced(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": WAITING}), "t.py"))
    await until(lambda: len(plane.rendezvous.starts()) == 2)
    endpoint = plane.rendezvous.joins[-1].store_endpoint
    held = agent.agent._runners["job-1.1"].stores.held
    os.kill(held.identity.worker_pid, signal.SIGKILL)
    await until(lambda: plane.rendezvous.joins[-1].store_endpoint != endpoint)
    assert not plane.rendezvous.exits()
    (code(world) / "go").touch()
    await plane.scheduler.stopped("job-1", plane.rendezvous)


async def test_a_dead_holder_takes_its_worker_along_and_is_reported_as_lost(world: World) -> None:
    agent = await world.agent()
    plane = world.plane
    plane.rendezvous.failures_left = 0
    plane.scheduler.want(world.attempt(agent.id, world.bundle({"t.py": WAITING}), "t.py", workers=1))
    await until(lambda: plane.rendezvous.starts())
    running = agent.agent._runners["job-1.1"].places.running
    identity = next(iter(running.values())).held.identity
    os.kill(identity.holder_pid, signal.SIGKILL)
    await until(lambda: plane.rendezvous.exits())
    assert (plane.rendezvous.exits()[0].signal, plane.rendezvous.exits()[0].expected) == (9, False)
    assert "holder" in plane.rendezvous.exits()[0].message
    await until(lambda: not identity.worker_lives)


def spawn(world: World) -> subprocess.Popen[bytes]:
    endpoint = world.plane.endpoint
    (world.data / "token").touch(mode=0o600)
    (world.data / "token").write_text("token")
    (world.data / "format.json").write_text('{"format": 1, "deployment": "dep-1"}')
    peers = {f"DISTROML_{name}": endpoint for name in ("SCHEDULER", "RENDEZVOUS", "CHECKPOINT", "TELEMETRY")}
    env = {
        **os.environ,
        **peers,
        "DISTROML_DATA": str(world.data),
        "DISTROML_SLOTS": "3",
        "DISTROML_AGENT_WARM": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "distroml.agent"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def test_sigkill_of_a_real_agent_process(world: World) -> None:
    plane = world.plane
    bundle = world.bundle({"t.py": MANAGED})
    process = spawn(world)
    try:
        await until(lambda: plane.scheduler.hellos)
        hello = plane.scheduler.hellos[0]
        assert [slot.id for slot in hello.slots] == ["cpu-0", "cpu-1", "cpu-2"]
        plane.scheduler.want(world.attempt(hello.node, bundle, "t.py"))
        await until(lambda: len(plane.rendezvous.starts()) == 2, 60)
        await until(lambda: len([line for line in plane.telemetry.lines() if line.startswith("began")]) == 2)
        process.kill()
        process.wait()
        pids = plane.rendezvous.pids()
        process = spawn(world)
        await until(lambda: len(plane.scheduler.hellos) == 2)
        assert plane.scheduler.hellos[1].agent_id != hello.agent_id
        await until(lambda: plane.rendezvous.joins[-1].running_generation == 1)
        os.kill(pids[1], signal.SIGKILL)
        await until(lambda: said(plane, "in 2 0"))
        assert os.path.exists(f"/proc/{pids[0]}")
        # Drained politely, it leaves its workers to the next one; `down` would end them.
        (world.data / "node/down").touch()
        process.terminate()
        assert process.wait(20) == 0
        assert not os.path.exists(f"/proc/{pids[0]}")
    finally:
        process.kill()
        process.wait()
