"""Workers that talk over the link and survive a broken generation in their process."""

from __future__ import annotations

import os
import signal

import pytest

from distroml.agent.adapters import checkpoints
from distroml.api.checkpoint.v1 import checkpoint_pb2 as ckpt
from distroml.api.common.v1 import common_pb2 as common
from distroml.api.scheduler.v1 import nodes_pb2 as nodes
from distroml.observability import names, trace
from distroml.observability.metrics import REGISTRY
from services.agent.tests.conftest import World
from services.agent.tests.plane import Plane, until

# A worker in the words of the link: no torch, one command file to steer it.
MANAGED = """
    import os, select, socket, sys, time
    from distroml.workerlink import *
    from distroml.workerlink import environment as names

    env = os.environ
    generation = int(env[names.GENERATION])
    print("began", env["RANK"], env.get(names.RESTORE, "-"), flush=True)
    frames = Frames()

    def connect():
        while True:
            link = socket.socket(socket.AF_UNIX)
            try:
                link.connect(env[names.LINK_SOCKET])
                link.sendall(encode(Hello(protocol=PROTOCOL, worker=env[names.WORKER], pid=os.getpid(), managed=True,
                                          incarnation=int(env[names.INCARNATION]), generation=generation)))
                return link
            except OSError:
                # The agent is not there, or has died in the middle.
                link.close()
                time.sleep(0.02)

    link = connect()
    step = 0
    waiting = None
    while True:
        if os.path.exists("raise" + env["RANK"]):
            link.sendall(encode(WorkerFailed(generation=generation, category="exception", last_step=step,
                                             message="ValueError: bad batch", traceback="Traceback: bad batch")))
            raise SystemExit(1)
        if os.path.exists("save") and not step:
            step = 5
            link.sendall(encode(SaveBegun(generation=generation, step=step, world_size=int(env["WORLD_SIZE"]),
                                          rank=int(env["RANK"]))))
        if os.path.exists("plan" + env["RANK"]) and not step:
            step = 20
            for said in (LinksProbed(generation=generation, topology='{"levels": []}', seconds=0.5,
                                     sums='{"sizes": []}'),
                         PlanChosen(generation=generation, plan='{"tp": 2}', prediction="{}", best="[]",
                                    alternatives_hash="ab" * 32),
                         PlanMeasured(generation=generation, steps=10, step_seconds=0.3),
                         PlanMeasured(generation=generation, steps=20, step_seconds=0.25, peak_bytes_per_rank=1 << 33,
                                      predicted_step_seconds=0.2, verdict="Slower", message="kept"),
                         SchemeChanged(generation=generation, buckets=(1, 4), from_scheme="none", to_scheme="int8",
                                       reason="LinkSlower", why="slow", from_step=22, place="pp1of2"),
                         CompressionAdvised(generation=generation, step=20, step_seconds=0.25, exposed_seconds=0.1,
                                            predicted_step_seconds=0.2, faster=1.2, schemes="int8")):
                link.sendall(encode(said))
        if os.path.exists("span" + env["RANK"]) and not step:
            step = 30
            trace, above = env["TRACEPARENT"].split("-")[1:3]
            for id in ("00f067aa0ba902b7", "no id"):
                link.sendall(encode(Span(trace_id=trace, span_id=id, parent_span_id=above, name="restore", start_ns=5,
                                         end_ns=9, attributes={"n": 1}, error="slow", dropped=3)))
        if os.path.exists("end"):
            link.sendall(encode(Samples(steps=[StepSample(generation=generation, step=9, total_steps=10, at_ms=1,
                                                          step_s=0.1, loss=1.5)])))
            raise SystemExit(0)
        if not select.select([link], [], [], 0.02)[0]:
            continue
        try:
            data = link.recv(65536)
        except OSError:
            data = b""
        if not data:
            frames = Frames()
            link = connect()
            if waiting is not None:
                link.sendall(encode(AwaitGeneration(after=waiting)))
            continue
        for body in frames.feed(data):
            said = decode_to_worker(body)
            print(type(said).__name__, getattr(said, "number", ""), flush=True)
            if isinstance(said, GenerationBroken) and not os.path.exists("deaf"):
                waiting = generation
                link.sendall(encode(AwaitGeneration(after=generation, error="peer gone")))
            elif isinstance(said, Generation):
                waiting, generation = None, said.number
                print("in", said.number, said.rank, said.restore.step if said.restore else "-", flush=True)
            elif isinstance(said, SaveOpened):
                link.sendall(encode(ShardSaved(generation=generation, step=said.step, rank=int(env["RANK"]),
                    world_size=int(env["WORLD_SIZE"]), shard_key="k", shard_hash="h", bytes_written=1, bytes_reused=0,
                    seconds=0.1)))
            elif isinstance(said, Drain):
                waiting = generation
                link.sendall(encode(AwaitGeneration(after=generation)))
            elif isinstance(said, Stop):
                link.sendall(encode(Stopping(step=step)))
                raise SystemExit(0)
"""


async def start(world: World, **spec: object):
    agent = await world.agent()
    wanted = world.attempt(agent.id, world.bundle({"t.py": MANAGED}), "t.py", **spec)
    world.plane.scheduler.want(wanted)
    await until(lambda: said(world.plane, "Welcome") == 2 or len(began(world.plane)) == 2)
    return agent, wanted


def said(plane: Plane, text: str) -> int:
    return sum(line.startswith(text) for line in plane.telemetry.lines())


def began(plane: Plane) -> list[str]:
    return [line for line in plane.telemetry.lines() if line.startswith("began")]


def command(world: World, name: str) -> None:
    (world.data / "node/workers/job-1.1/code" / name).touch()


async def connected(agent) -> None:
    runner = agent.agent._runners["job-1.1"]
    await until(lambda: all(p.process and p.process.connected for p in runner.state.places))


async def test_a_survivor_stays_in_its_process_and_learns_what_to_restore(world: World) -> None:
    agent, _ = await start(world)
    plane = world.plane
    await connected(agent)
    plane.checkpoints.latest = ckpt.Checkpoint(job="job-1", step=40, manifest_hash="abc")
    pids = plane.rendezvous.pids()
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: said(plane, "in 2 1 40"))
    await until(lambda: said(plane, "began 0 40:abc"))
    assert len(plane.rendezvous.starts()) == 3
    assert os.path.exists(f"/proc/{pids[1]}")
    assert [e.rank for e in plane.rendezvous.exits()] == [0]
    assert plane.checkpoints.asked == [1, 2]
    # Ready with a fresh store before the generation formed.
    assert plane.rendezvous.formed.store_endpoint == plane.rendezvous.joins[-1].store_endpoint
    assert len({join.store_endpoint for join in plane.rendezvous.joins}) == 2
    command(world, "end")
    await plane.scheduler.stopped("job-1", plane.rendezvous)
    assert plane.rendezvous.closed.outcome == "Succeeded"
    await until(lambda: plane.telemetry.steps() == [9, 9])


async def test_what_a_worker_said_of_its_end_is_its_verdict(world: World) -> None:
    agent, _ = await start(world)
    await connected(agent)
    world.plane.rendezvous.failures_left = 0
    command(world, "raise1")
    await world.plane.scheduler.stopped("job-1", world.plane.rendezvous)
    exited = next(e for e in world.plane.rendezvous.exits() if e.rank == 1)
    assert exited.category == common.FAILURE_CATEGORY_EXCEPTION
    assert (exited.message, exited.traceback) == ("ValueError: bad batch", "Traceback: bad batch")


async def test_a_worker_that_does_not_leave_is_killed_after_its_time(world: World, monkeypatch) -> None:
    monkeypatch.setattr("distroml.agent.domain.gang.TEARDOWN_S", 0.5)
    agent, _ = await start(world)
    plane = world.plane
    await connected(agent)
    command(world, "deaf")
    pids = plane.rendezvous.pids()
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: len(plane.rendezvous.exits()) == 2)
    late = plane.rendezvous.exits()[1]
    assert (late.rank, late.signal, late.expected) == (1, 9, True)
    assert "did not leave generation 1" in late.message
    await until(lambda: len(plane.rendezvous.starts()) == 4)


async def test_a_save_is_opened_reported_and_announced(world: World) -> None:
    agent, _ = await start(world)
    await connected(agent)
    command(world, "save")
    await until(lambda: said(world.plane, "CheckpointCommitted") == 2)
    assert world.plane.checkpoints.shards == {5: {0, 1}}
    assert not list(agent.agent.node.spool.pending(kind="shard"))


async def test_a_worker_s_spans_leave_by_the_agent_as_its_own(world: World) -> None:
    job = trace.fresh()
    agent, _ = await start(world, traceparent=job.traceparent)
    await connected(agent)
    before = REGISTRY.get_sample_value(names.SPANS_DROPPED, {names.LABEL_WHY: "link"}) or 0.0
    command(world, "span0")
    await until(lambda: [one.name for one in agent.spans.get_finished_spans()].count("restore") == 1)
    spans = {one.name: one for one in agent.spans.get_finished_spans()}
    for name in ("prepare", "start worker", "restore"):
        assert f"{spans[name].context.trace_id:032x}" == job.trace_id
        assert f"{spans[name].parent.span_id:016x}" == job.span_id
    said_ = spans["restore"]
    assert (said_.start_time, said_.end_time, said_.status.description) == (5, 9, "slow")
    assert said_.attributes["n"] == 1
    assert said_.resource.attributes["service.name"] == "worker"
    assert said_.resource.attributes["service.instance.id"] == f"{said_.attributes['distroml.worker']}.1"
    assert spans["start worker"].attributes["distroml.start"] == "cold"
    # What is no span is none; what the worker dropped is counted once.
    await until(lambda: REGISTRY.get_sample_value(names.SPANS_DROPPED, {names.LABEL_WHY: "link"}) == before + 3)


async def test_a_refused_save_reaches_the_worker(world: World) -> None:
    agent, _ = await start(world)
    await connected(agent)
    world.plane.checkpoints.refuse = "the job is fenced"
    command(world, "save")
    await until(lambda: said(world.plane, "SaveRefused") == 2)


async def test_a_save_of_which_nothing_was_heard_is_closed_for_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "BEGIN_S", 0.2)
    agent, _ = await start(world)
    await connected(agent)
    world.plane.checkpoints.silent = True
    command(world, "save")
    await until(lambda: len(world.plane.checkpoints.failed) == 2)
    await until(lambda: said(world.plane, "SaveRefused") == 2)
    assert {(step, rank) for step, rank, _ in world.plane.checkpoints.failed} == {(5, 0), (5, 1)}
    assert "did not hear in time" in world.plane.checkpoints.failed[0][2]


async def test_without_room_a_save_is_refused_and_its_failure_is_told_when_there_is_some(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "BEGIN_S", 0.2)
    agent, _ = await start(world)
    await connected(agent)
    world.plane.checkpoints.full = {"begin", "failed"}
    command(world, "save")
    await until(lambda: said(world.plane, "SaveRefused") == 2)
    # Both ranks have asked, and now tell.
    refused = world.plane.checkpoints.refused
    await until(lambda: world.plane.checkpoints.refused >= refused + 4)
    assert len(list(agent.agent.node.spool.pending(kind="save_failed"))) == 2
    world.plane.checkpoints.full.clear()
    await until(lambda: len(world.plane.checkpoints.failed) == 2)
    assert {(step, rank) for step, rank, _ in world.plane.checkpoints.failed} == {(5, 0), (5, 1)}
    assert "no room" in world.plane.checkpoints.failed[0][2]


async def test_a_shard_that_cannot_be_recorded_for_want_of_room_is_recorded_when_there_is_some(world: World) -> None:
    agent, _ = await start(world)
    await connected(agent)
    world.plane.checkpoints.full = {"shard"}
    command(world, "save")
    await until(lambda: world.plane.checkpoints.refused >= 4)
    assert said(world.plane, "CheckpointFailed") == 0
    world.plane.checkpoints.full.clear()
    await until(lambda: said(world.plane, "CheckpointCommitted") == 2)


async def test_a_plan_its_measurements_links_and_schemes_reach_rendezvous(world: World) -> None:
    agent, _ = await start(world)
    await connected(agent)
    # Rank 1 leads a part of the model that rank 0 has nothing of.
    command(world, "plan1")
    reports = world.plane.rendezvous.reports
    kinds = ("links", "plan", "measured", "scheme", "advice")
    await until(lambda: sum(report.WhichOneof("what") in kinds for report in reports) == 6)
    links, plan, first, second, scheme, advice = (report for report in reports if report.WhichOneof("what") in kinds)
    assert (links.links.topology, links.links.seconds) == ('{"levels": []}', 0.5)
    assert links.links.sums == '{"sizes": []}'
    assert (plan.plan.plan, plan.plan.best, plan.plan.alternatives_hash) == ('{"tp": 2}', "[]", "ab" * 32)
    assert (first.measured.steps, first.measured.verdict) == (10, "NotPredicted")
    assert (second.measured.steps, second.measured.step_seconds, second.measured.verdict) == (20, 0.25, "Slower")
    assert second.measured.peak_bytes_per_rank == 1 << 33
    changed = scheme.scheme
    assert (changed.bucket, [*changed.buckets], changed.place) == (1, [1, 4], "pp1of2")
    assert (changed.from_scheme, changed.to_scheme, changed.from_step) == ("none", "int8", 22)
    assert (changed.reason, changed.why) == ("LinkSlower", "slow")
    assert (advice.advice.exposed_seconds, advice.advice.faster, advice.advice.schemes) == (0.1, 1.2, "int8")
    assert len({report.report_id for report in (links, plan, first, second, scheme, advice)}) == 6
    assert all(report.generation == 1 for report in (links, plan, first, second, scheme, advice))


async def test_stop_over_the_link(world: World) -> None:
    agent, wanted = await start(world)
    await connected(agent)
    wanted.stop.CopyFrom(nodes.StopOrder(reason="Paused", grace_s=20, checkpoint=True))
    world.plane.scheduler.want(wanted)
    await world.plane.scheduler.stopped("job-1", world.plane.rendezvous)
    assert [(e.code, e.signal) for e in world.plane.rendezvous.exits()] == [(0, 0)] * 2
    await until(lambda: said(world.plane, "Stop") == 2)


async def test_a_resize_drains_and_forms_with_the_new_size(world: World) -> None:
    agent, wanted = await start(world)
    plane = world.plane
    await connected(agent)
    wanted.gang[0].workers = 3
    wanted.slots.append("cpu-2")
    plane.scheduler.want(wanted)
    await until(lambda: len(plane.rendezvous.joins[-1].workers) == 3)
    plane.rendezvous.drain("resized")
    await until(lambda: plane.rendezvous.number == 2 and len(plane.rendezvous.starts()) == 3)
    assert plane.rendezvous.formed.world_size == 3
    await until(lambda: said(plane, "in 2") == 2)
    # And back: the place that went away ends, the others go on.
    del wanted.slots[1:]
    wanted.gang[0].workers = 1
    plane.scheduler.want(wanted)
    await until(lambda: len(plane.rendezvous.joins[-1].workers) == 1)
    assert plane.scheduler.applied[-1] < plane.scheduler.desired.revision
    plane.rendezvous.drain("resized")
    await until(lambda: plane.rendezvous.formed.world_size == 1 and said(plane, "in 3 0"))
    await until(lambda: plane.scheduler.desired.revision in plane.scheduler.applied)
    assert len([e for e in plane.rendezvous.exits() if e.expected]) == 2


async def test_a_stopped_process_is_a_hang(world: World, monkeypatch) -> None:
    monkeypatch.setattr("distroml.agent.domain.silence.STOPPED_S", 1.5)
    agent, _ = await start(world)
    await connected(agent)
    pid = world.plane.rendezvous.pids()[1]
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: world.plane.rendezvous.exits())
    exited = world.plane.rendezvous.exits()[0]
    assert exited.category == common.FAILURE_CATEGORY_HANG
    assert "SIGSTOP" in exited.message
    hangs = [r.hang for r in world.plane.rendezvous.reports if r.HasField("hang")]
    assert [hang.rank for hang in hangs] == [1]
