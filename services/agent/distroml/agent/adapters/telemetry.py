"""Samples, lines and spans on their way to telemetry: bounded, dropped when full, counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from grpc.aio import AioRpcError, Channel

from distroml.agent.adapters.streams import heed_cancellation
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub
from distroml.logstore import Block
from distroml.observability import logger
from distroml.rpc import Backoff

if TYPE_CHECKING:
    from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceAsyncStub

log = logger(__name__)

BATCH_S = 0.25
MAX_SAMPLES = 20_000
MAX_LINES = 20_000
MAX_LINE_BYTES = 32 << 20
MAX_SPANS = 2_000
_BATCH_ITEMS = 1_000
_BATCH_LINES = 8_000
_BATCH_BYTES = 1 << 20
_WINDOW = 8

T = TypeVar("T")

Done: TypeAlias = Callable[[], None]
"""To be called once, when telemetry has some lines or they were let go of."""


class TelemetryPush:
    """What goes to telemetry. Adding never waits; what does not fit drives out the oldest of its kind."""

    def __init__(self, channel: Channel, node: str) -> None:
        self._stub = cast("TelemetryServiceAsyncStub", TelemetryServiceStub(channel))
        self._node = node
        self._steps: deque[pb.StepSample] = deque()
        self._resources: deque[pb.ResourceSample] = deque()
        self._blocks: deque[tuple[pb.LogBlock, int, Done | None]] = deque()
        self._lines = self._line_bytes = 0
        self._spans: deque[pb.SpanRecord] = deque()
        self._unacknowledged: deque[tuple[pb.PushRequest, list[Done]]] = deque()
        self._room = asyncio.Event()
        self._sequence = 0
        self._stream = 0
        self.dropped_samples = 0
        self.dropped_lines = 0

    def add_step(self, sample: pb.StepSample) -> None:
        """One step of one rank."""
        self._steps.append(sample)
        if len(self._steps) > MAX_SAMPLES:
            self._steps.popleft()
            self.dropped_samples += 1

    def add_resource(self, sample: pb.ResourceSample) -> None:
        """What one worker uses."""
        self._resources.append(sample)
        if len(self._resources) > MAX_SAMPLES:
            self._resources.popleft()
            self.dropped_samples += 1

    def add_lines(self, block: Block, done: Done | None = None) -> None:
        """Some lines of a worker's output."""
        self._blocks.append((_message(block), block.count, done))
        self._lines += block.count
        self._line_bytes += len(block.data)
        while self._lines > MAX_LINES or self._line_bytes > MAX_LINE_BYTES:
            _, lines, gone = self._next_block()
            self.dropped_lines += lines
            if gone is not None:
                gone()

    def add_span(self, span: pb.SpanRecord) -> None:
        """One finished span."""
        self._spans.append(span)
        if len(self._spans) > MAX_SPANS:
            self._spans.popleft()
            self.dropped_samples += 1

    @property
    def room_for_lines(self) -> bool:
        """Whether a reader of files should go on reading."""
        return self._lines < MAX_LINES // 2 and self._line_bytes < MAX_LINE_BYTES // 2

    async def run(self) -> None:
        """Push until cancelled; an absent telemetry service is dialled again and again."""
        backoff = Backoff(0.2, 5.0)
        told = False
        while True:
            self._stream += 1
            try:
                async for answer in self._stub.Push(self._batches(self._stream)):
                    told = False
                    backoff.reset()
                    while self._unacknowledged and self._unacknowledged[0][0].sequence <= answer.sequence:
                        for done in self._unacknowledged.popleft()[1]:
                            done()
                    self._room.set()
            except AioRpcError as error:
                heed_cancellation()
                if not told:
                    log.info("telemetry is away; samples and lines wait, then are dropped", error=error.details())
                    told = True
            self._stream += 1
            self._room.set()
            await backoff.wait()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything added is acknowledged; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._unacknowledged or self._steps or self._resources or self._blocks or self._spans:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    async def _batches(self, stream: int) -> AsyncIterator[pb.PushRequest]:
        for batch, _ in list(self._unacknowledged):
            yield batch
        # A call that failed still asks its iterator for one more: it must not get what the next call is to send.
        while stream == self._stream:
            taken = self._take()
            if taken is None:
                await asyncio.sleep(BATCH_S)
                continue
            self._unacknowledged.append(taken)
            yield taken[0]
            while len(self._unacknowledged) >= _WINDOW and stream == self._stream:
                self._room.clear()
                await self._room.wait()

    def _take(self) -> tuple[pb.PushRequest, list[Done]] | None:
        """The next batch, and whom to tell when telemetry has it."""
        steps = _some(self._steps)
        resources = _some(self._resources)
        spans = _some(self._spans)
        blocks: list[pb.LogBlock] = []
        told: list[Done] = []
        lines = size = 0
        while self._blocks and lines < _BATCH_LINES and size < _BATCH_BYTES:
            block, count, done = self._next_block()
            size += len(block.data)
            lines += count
            blocks.append(block)
            if done is not None:
                told.append(done)
        if not (steps or resources or blocks or spans):
            return None
        self._sequence += 1
        request = pb.PushRequest(
            node=self._node,
            steps=steps,
            resources=resources,
            log_blocks=blocks,
            spans=spans,
            sequence=self._sequence,
            dropped_samples=self.dropped_samples,
            dropped_lines=self.dropped_lines,
        )
        return request, told

    def _next_block(self) -> tuple[pb.LogBlock, int, Done | None]:
        """Take the oldest block out; how many lines it has, and whom to tell."""
        block, count, done = self._blocks.popleft()
        self._lines -= count
        self._line_bytes -= len(block.data)
        return block, count, done


def _message(block: Block) -> pb.LogBlock:
    return pb.LogBlock(
        job=block.job,
        rank=block.rank,
        worker=block.worker,
        generation=block.generation,
        stream=block.stream,
        data=block.data,
        at_ms=block.at_ms,
        offset=block.offset,
        incarnation=block.incarnation,
        trace_id=block.trace_id,
        attempt=block.attempt,
    )


def _some(queue: deque[T]) -> list[T]:
    return [queue.popleft() for _ in range(min(_BATCH_ITEMS, len(queue)))]
