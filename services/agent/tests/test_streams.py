from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distroml.agent.adapters.rendezvous import MAX_UNSENT, RendezvousStream
from distroml.agent.adapters.shipping import LineCounts, LineShipping, counting
from distroml.agent.adapters.telemetry import MAX_LINES, TelemetryPush
from distroml.agent.spool import Spool
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.logstore import Block
from distroml.rpc import connect
from services.agent.tests.conftest import World
from services.agent.tests.plane import Plane, until


def line(text: str) -> Block:
    return Block(
        job="job-1", worker="w", incarnation=1, stream="stdout", rank=0, generation=1, at_ms=1, offset=0,
        data=text.encode() + b"\n",
    )  # fmt: skip


async def test_lines_survive_an_absent_telemetry_in_order(plane: Plane) -> None:
    await plane.stop()
    channel = connect(plane.endpoint, "token")
    push = TelemetryPush(channel, "node-1")
    running = asyncio.create_task(push.run())
    # Several calls fail meanwhile; none of them may swallow a batch.
    await asyncio.sleep(1.5)
    await plane.start()
    for number in range(12):
        push.add_lines(line(str(number)))
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
        push.add_lines(line(str(number)))
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
        push.add_lines(line("x"))
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


async def test_reports_past_the_bound_are_dropped_and_that_is_said(
    tmp_path: Path, plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    channel, spool = connect(plane.endpoint, "token"), Spool(tmp_path / "spool")
    stream = RendezvousStream(channel, spool, "job-1.1", hear=lambda _: None, heartbeat=lambda: 0)
    exited = rdzv.WorkerReport(report_id="exit", worker="w", exited=rdzv.WorkerExited(worker="w", code=1))
    stream.report(exited, durable=True)
    for number in range(MAX_UNSENT + 2):
        stream.report(rdzv.WorkerReport(report_id=f"{number}", worker="w"), durable=False)
    assert stream.dropped == 3
    told = [record for record in caplog.records if "oldest reports are dropped" in record.getMessage()]
    assert len(told) == 2, "the first and the second time"
    assert [one.id for one in spool.pending()] == ["job-1.1/exit"]
    spool.close()
    await channel.close(None)


async def test_lines_that_are_not_shipped_are_said_once_and_told_to_telemetry(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    channel = connect(plane.endpoint, "token")
    push = TelemetryPush(channel, "node-1")
    counts = LineCounts(1000)
    shipping = LineShipping(push, bytes_per_s=1000)
    told = counting(counts.count)("stdout")
    kept: list[Block] = []
    shipping.store = Kept(kept)
    shipping.add(line("one"), lambda ends: told(4, ends, 0))
    shipping.limited(7, line("… 7 lines were not shipped"), lambda ends: told(704, ends, 700))
    counts.count("full", 2)
    # Nothing is counted before telemetry has it: who comes after a crash sends it again.
    assert [one.texts() for one in kept] == [["one"]]
    running = asyncio.create_task(push.run())
    assert await push.flush(10)
    counts.tell()
    counts.tell()
    (said,) = (record for record in caplog.records if "were not shipped" in record.getMessage())
    fields = vars(said)["distroml_fields"]
    assert fields == {"limit_bytes_per_s": 1000, "limited_bytes": 700, "limited_lines": 7, "full_lines": 2}
    assert plane.telemetry.lines() == ["one", "… 7 lines were not shipped"]
    assert plane.telemetry.batches[0].dropped_lines == 7
    running.cancel()
    await channel.close(None)


class Kept:
    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks

    def add(self, block: Block, count: Callable[[str, int], None]) -> None:
        self.blocks.append(block)
        count("shipped", block.count)
