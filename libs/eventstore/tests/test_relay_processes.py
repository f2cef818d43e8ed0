"""Relays as processes: killed at every point, stopped past their lease, their server killed, their stream deleted."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from nats.js.errors import NotFoundError

from deploy.stack import running
from deploy.stack.nats import Nats
from distroml.eventstore import StoreDown
from distroml.eventstore.jetstream import JetStreamReader, NatsConnection
from distroml.eventstore.relay.core import BEGINNING
from distroml.eventstore.relay.port import LogMoved
from libs.eventstore.tests.log_parts import events_of, history
from libs.eventstore.tests.relay_child import FileOutbox, parts, settings

BEGUN: list[subprocess.Popen] = []
FAILPOINTS = ("jetstream.publish", "relay.publish", "relay.seal", "segments.seal", "relay.trim")


def prepared(folder, total, count=None):
    folder.mkdir(exist_ok=True)
    (folder / "total").write_text(str(total))
    outbox = FileOutbox(folder, history(total))
    outbox.write("count", total if count is None else count)
    return outbox


def start(folder, server, failpoint=""):
    environment = os.environ | ({"DISTROML_FAILPOINT": failpoint} if failpoint else {})
    command = [sys.executable, "-m", "libs.eventstore.tests.relay_child", str(folder), str(server.port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    BEGUN.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left():
    """A test that fails leaves no relay behind."""
    yield
    while BEGUN:
        process = BEGUN.pop()
        process.kill()
        process.communicate()


def finish(process, within_s=60):
    out, _ = process.communicate(timeout=within_s)
    return out.split()


async def check(folder, server):
    """Log and segments each hold everything, once and in order."""
    connection = NatsConnection(settings(server.port))
    await connection.connect()
    outbox, log, segments = parts(folder, connection)
    expected = events_of(outbox.commits)
    reader, found, after = JetStreamReader(log), [], BEGINNING
    while (page := await reader.read(after, (), 1000)) is not None and page.events:
        found += page.events
        after = page.through
    assert found == expected
    assert await segments.verify() == []
    assert [one async for one in segments.commits(after=0)] == outbox.commits
    assert outbox.trimmed == outbox.commits[-1].revision
    await connection.close()


async def stream_of(server, call):
    """Call something with the log, as often as it takes for the server to be there."""
    connection = NatsConnection(settings(server.port))
    await connection.connect()
    outcome = await call(connection)
    await connection.close()
    return outcome


@pytest.fixture
def server(tmp_path):
    with running(Nats(), tmp_path / "nats") as server:
        yield server


@pytest.mark.timeout(240)
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_at_every_point_a_relay_is_gone_on_with(tmp_path, failpoint):
    total = 8

    def killed(nth):
        folder = tmp_path / str(nth)
        prepared(folder, total)
        with running(Nats(), folder / "nats") as server:
            process = start(folder, server, f"{failpoint}:kill:{nth}")
            finish(process)
            if process.returncode == 0:
                return "past the last"
            assert process.returncode == -signal.SIGKILL
            after = start(folder, server)
            finish(after)
            assert after.returncode == 0
            asyncio.run(check(folder, server))
            return "gone on with"

    folder = tmp_path / "count"
    prepared(folder, total)
    with running(Nats(), folder / "nats") as server:
        points = int(finish(start(folder, server, f"{failpoint}:count"))[-1])
        asyncio.run(check(folder, server))
    assert points >= 2
    # Two processes for each point take their time: of many alike, some.
    step = -(-points // 4)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(killed, range(1, points + 1, step)))
    # How commits fall into batches and segments is a matter of time, so the last points may not come again.
    assert outcomes[0] == "gone on with"
    assert outcomes.count("gone on with") >= len(outcomes) / 2


def test_a_relay_stopped_past_its_lease_is_replaced_and_harms_nothing(tmp_path, server):
    folder = tmp_path / "relay"
    outbox = prepared(folder, 60, count=5)
    first = start(folder, server)
    assert first.stdout.readline() == "working\n"
    wait(lambda: outbox.trimmed == outbox.commits[4].revision)
    first.send_signal(signal.SIGSTOP)
    second = start(folder, server)
    outbox.write("count", 20)
    # A lease is judged by who is awake: it ends a ttl after the second one began to look.
    assert second.stdout.readline() == "working\n"
    wait(lambda: outbox.trimmed == outbox.commits[19].revision)
    first.send_signal(signal.SIGCONT)
    for count in range(21, 61):
        outbox.write("count", count)
        time.sleep(0.02)
    finish(second)
    finish(first)
    assert (first.returncode, second.returncode) == (0, 0)
    asyncio.run(check(folder, server))


@pytest.mark.timeout(240)
def test_the_server_killed_and_the_stream_deleted_under_a_relay_lose_nothing(tmp_path, server):
    folder = tmp_path / "relay"
    outbox = prepared(folder, 120, count=1)
    relay = start(folder, server)
    assert relay.stdout.readline() == "working\n"

    async def delete(connection):
        while True:
            try:
                return await connection.client.jetstream().delete_stream(parts(folder, connection)[1].name)
            except (StoreDown, LogMoved, NotFoundError):
                # The server, or the stream that was deleted before, is not back yet.
                await asyncio.sleep(0.05)

    for count in range(2, 121):
        outbox.write("count", count)
        time.sleep(0.02)
        if count in (30, 80):
            server.kill()
            server.restart()
        if count in (50, 100):
            asyncio.run(stream_of(server, delete))
    finish(relay)
    assert relay.returncode == 0
    asyncio.run(check(folder, server))


def wait(condition, within_s=30):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        time.sleep(0.02)
