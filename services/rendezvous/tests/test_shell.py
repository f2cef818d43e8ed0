"""Parts of the shell by themselves: what a judge has seen, stored forms, the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from rendezvous_agents import Agent, form
from rendezvous_words import by, events_of, formed_pair, killed

from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.rendezvous import domain as d
from distroml.rendezvous.adapters.codec import PUBLIC_EVENTS
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.waiting import Wait
from distroml.rendezvous.judge import Sight
from distroml.rendezvous.session import MAX_UNSENT, Remembered, Session
from distroml.rpc import RemoteError
from distroml.rpc.errors import ResourceExhausted
from distroml.rpc.publicevents import check_codec

TTL_S = 30


def looks(sight: Sight, *times: float) -> Sight:
    for now in times:
        sight.look(now)
    return sight


def steps(start: float, end: float) -> list[float]:
    return [start + i for i in range(1, int(end - start) + 1)]


def test_a_judge_that_just_started_grants_a_full_ttl():
    sight = looks(Sight(100.0, TTL_S), *steps(100, 129))
    assert not sight.may_judge
    assert looks(sight, 130).may_judge


def test_a_judge_that_stood_still_grants_a_full_ttl_again():
    sight = looks(Sight(0.0, TTL_S), *steps(0, 100))
    assert sight.may_judge
    assert looks(sight, 110).may_judge
    assert not looks(sight, 120.1).may_judge
    assert not looks(sight, *steps(120.1, 149.1)).may_judge
    assert looks(sight, 150.1).may_judge


def test_a_wait_is_measured_from_its_beginning_and_anew_after_a_standstill():
    gather, other = d.Waiting(Wait.GATHER, 1), d.Waiting(Wait.GATHER, 2)
    sight = Sight(0.0, TTL_S)
    assert looks(sight, 1).waited_ms("j", gather) == 0
    assert looks(sight, 5).waited_ms("j", gather) == 4000
    assert looks(sight, 6).waited_ms("j", other) == 0
    assert looks(sight, 8).waited_ms("j", other) == 2000
    assert looks(sight, 50).waited_ms("j", other) == 0
    assert sight.waited_ms("j", None) == 0
    assert looks(sight, 51).waited_ms("j", other) == 0


def test_reports_are_remembered_up_to_a_bound():
    remembered = Remembered()
    for number in range(Remembered.LIMIT + 1):
        remembered.add(str(number))
    assert "0" not in remembered
    assert "1" in remembered


async def test_an_agent_that_does_not_read_loses_its_stream_and_not_the_service_its_memory():
    session = Session(by("a"), 30)
    for number in range(MAX_UNSENT + 10):
        session.tell(pb.JoinResponse(drain=pb.DrainGeneration(generation=number)))
    told: list[pb.JoinResponse] = []

    async def read() -> None:
        async for response in session:
            told.append(response)

    with pytest.raises(ResourceExhausted):
        await read()
    assert len(told) == MAX_UNSENT


def test_public_events_survive_the_way_into_the_log_and_back():
    samples: dict[type, object] = {
        type(event): event for event in events_of(*formed_pair(failures_left=0), killed("b"))
    }
    common = {"at_ms": 1, "worker": "j.1.a.0", "generation": 1, "rank": 0}
    samples |= {
        ev.WorkerStarted: ev.WorkerStarted(**common, pid=1, start="warm", node="a", seconds=0.25, why_cold=""),
        ev.HangDetected: ev.HangDetected(**common, silent_s=1.5, last_step=3),
        ev.NonFiniteDetected: ev.NonFiniteDetected(**common, step=3, what="loss"),
        ev.PlanChosen: ev.PlanChosen(
            at_ms=1, generation=1, plan="{}", inputs="{}", prediction="", best="[]", alternatives_hash="a" * 64
        ),
        ev.PlanMeasured: ev.PlanMeasured(
            at_ms=1,
            generation=1,
            steps=20,
            step_seconds=0.5,
            peak_bytes_per_rank=1 << 40,
            predicted_step_seconds=0.25,
            predicted_peak_bytes_per_rank=1 << 40,
            parts="{}",
            verdict="Slower",
            message="",
        ),
        ev.LinksProbed: ev.LinksProbed(at_ms=1, generation=1, topology="{}", seconds=0.5, reused=True, sums="{}"),
        ev.SchemeChanged: ev.SchemeChanged(
            at_ms=1,
            generation=1,
            bucket=2,
            buckets=(2, 3, 7),
            place="pp1of2",
            from_scheme="none",
            to_scheme="int8",
            reason="LinkSlower",
            why="the links do 10 Mbit/s",
            from_step=12,
        ),
        ev.CompressionAdvised: ev.CompressionAdvised(
            at_ms=1,
            generation=1,
            step=23,
            step_seconds=0.5,
            exposed_seconds=0.3,
            predicted_step_seconds=0.22,
            faster=2.1,
            schemes="int8",
        ),
        ev.StepRecorded: ev.StepRecorded(
            at_ms=1,
            generation=1,
            step=3,
            sample_from=0,
            sample_to=8,
            epoch=0,
            loss=0.5,
            fingerprint="f",
            why="checkpoint",
        ),
    }
    check_codec(PUBLIC_EVENTS, {cls: samples[cls] for cls in PUBLIC_EVENTS.classes})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a-token")
    return tmp_path


@pytest.fixture
def spawn(folder):
    """Starts the service's own process on one port, again and again."""
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "DISTROML_DATA": str(folder), "DISTROML_LISTEN": f"127.0.0.1:{port}"}
        running.append(subprocess.Popen([sys.executable, "-m", "distroml.rendezvous"], env=environment))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def join_patiently(agent: Agent, **more: int) -> int:
    async with asyncio.timeout(30):
        while True:
            try:
                return (await agent.join(**more)).generation
            except RemoteError as error:
                if not error.is_transient:
                    raise
                await asyncio.sleep(0.05)


async def test_the_process_survives_its_own_sigkill_and_ends_at_sigterm(spawn):
    port = free_port()
    process = spawn(port)
    async with Agent(f"127.0.0.1:{port}", "a") as a, Agent(f"127.0.0.1:{port}", "b") as b:
        for agent in (a, b):
            await join_patiently(agent)
        formed = await form(a, b)
        process.kill()
        process.wait()
        process = spawn(port)
        for agent in (a, b):
            assert await join_patiently(agent, running_generation=1) == 1
            assert await agent.expect("formed") == formed
        await b.exits(1, signal=9)
        assert (await a.expect("opened")).number == 2
        process.send_signal(signal.SIGTERM)
        with pytest.raises(RemoteError) as draining:
            await a.ended()
        assert draining.value.is_transient
    assert await asyncio.to_thread(process.wait, 20) == 0


def test_wrong_settings_are_said_in_one_line(folder):
    environment = {**os.environ, "DISTROML_DATA": str(folder), "DISTROML_RENDEZVOUS_MEMBER_TTL_S": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "distroml.rendezvous"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "member_ttl_s is 0" in ended.stderr
