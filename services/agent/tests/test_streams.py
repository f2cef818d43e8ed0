from __future__ import annotations

import asyncio
import time

from distroml.agent.adapters.telemetry import MAX_LINES, TelemetryPush
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.rpc import connect
from services.agent.tests.conftest import World
from services.agent.tests.plane import Plane, until


def line(text: str) -> pb.LogRecord:
    return pb.LogRecord(job="job-1", text=text, stream="stdout")


async def test_lines_survive_an_absent_telemetry_in_order(plane: Plane) -> None:
    await plane.stop()
    channel = connect(plane.endpoint, "token")
    push = TelemetryPush(channel, "node-1")
    running = asyncio.create_task(push.run())
    # Several calls fail meanwhile; none of them may swallow a batch.
    await asyncio.sleep(1.5)
    await plane.start()
    for number in range(12):
        push.add_line(line(str(number)))
        await asyncio.sleep(0.3)
    await until(lambda: len(plane.telemetry.lines()) >= 12)
    assert plane.telemetry.lines() == [str(number) for number in range(12)]
    assert await push.flush(5)
    running.cancel()
    await channel.close(None)


async def test_a_full_buffer_drops_the_oldest_and_says_how_many(plane: Plane) -> None:
    channel = connect(plane.endpoint, "token")
    push = TelemetryPush(channel, "node-1")
    for number in range(MAX_LINES + 10):
        push.add_line(line(str(number)))
    assert push.dropped_lines == 10
    assert not push.room_for_lines
    running = asyncio.create_task(push.run())
    await until(lambda: len(plane.telemetry.lines()) == MAX_LINES)
    assert plane.telemetry.lines()[0] == "10"
    assert plane.telemetry.batches[0].dropped_lines == 10
    running.cancel()
    await channel.close(None)


async def test_streams_end_when_they_are_told_to_whatever_grpc_makes_of_it(plane: Plane) -> None:
    for _ in range(20):
        channel = connect(plane.endpoint, "token")
        push = TelemetryPush(channel, "node-1")
        running = asyncio.create_task(push.run())
        push.add_line(line("x"))
        await until(lambda: plane.telemetry.lines())
        plane.telemetry.batches.clear()
        await plane.stop()
        running.cancel()
        await asyncio.wait([running], timeout=5)
        assert running.done()
        await channel.close(None)
        await plane.start()


async def test_heartbeats_keep_to_the_lease_that_the_scheduler_grants_from_the_first_on(world: World) -> None:
    world.plane.scheduler.lease_ttl_s = 1
    await world.agent()
    await until(lambda: world.plane.scheduler.hellos)
    began = time.monotonic()
    await until(lambda: len(world.plane.scheduler.applied) >= 8)
    assert time.monotonic() - began < 8, "eight thirds of a second, with room for a busy machine"
