"""The agent's stream to the scheduler: says what the node is and sees, hears what it is to run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, cast

from grpc.aio import AioRpcError, Channel

from distroml.agent.adapters.streams import heed_cancellation
from distroml.agent.spool import Entry, Spool
from distroml.api.scheduler.v1 import nodes_pb2 as pb
from distroml.api.scheduler.v1.nodes_pb2_grpc import NodeServiceStub
from distroml.observability import logger
from distroml.rpc import Backoff

if TYPE_CHECKING:
    from distroml.api.scheduler.v1.nodes_pb2_grpc import NodeServiceAsyncStub

log = logger(__name__)

OBSERVATION = "observation"
_TTL_S = 30


class NodeStream:
    """Connected for as long as `run` runs; `observe` works before and between connections too."""

    def __init__(
        self,
        channel: Channel,
        spool: Spool,
        *,
        hello: Callable[[], pb.NodeHello],
        desired: Callable[[pb.DesiredState], None],
        applied: Callable[[], int],
    ) -> None:
        self._stub = cast("NodeServiceAsyncStub", NodeServiceStub(channel))
        self._spool = spool
        self._hello = hello
        self._desired = desired
        self._applied = applied
        self._call: asyncio.Queue[pb.ConnectRequest | None] | None = None
        self._send: asyncio.Queue[pb.ConnectRequest | None] | None = None
        self._ttl_s = _TTL_S

    def observe(self, observation: pb.AttemptObservation, *, durable: bool) -> None:
        """Tell the scheduler where an attempt stands; a durable one until it is acknowledged."""
        if durable:
            group = f"{observation.job}.{observation.attempt}"
            id = f"{OBSERVATION}/{observation.observation_id}"
            try:
                self._spool.put(Entry(OBSERVATION, group, id, observation.SerializeToString()))
            except OSError as error:
                log.warning("an observation is not on disk", job=observation.job, error=str(error))
        if self._send is not None:
            self._send.put_nowait(pb.ConnectRequest(attempt=observation))

    def beat(self) -> None:
        """Say at once that a revision was applied."""
        if self._send is not None:
            self._send.put_nowait(self._heartbeat())

    def _heartbeat(self) -> pb.ConnectRequest:
        beat = pb.NodeHeartbeat(applied_revision=self._applied(), time_ms=time.time_ns() // 1_000_000)
        return pb.ConnectRequest(heartbeat=beat)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        backoff = Backoff(0.1, 2.0)
        told = False
        while True:
            queue: asyncio.Queue[pb.ConnectRequest | None] = asyncio.Queue()
            self._call = queue
            try:
                async for response in self._stub.Connect(self._requests(queue)):
                    if response.HasField("welcome"):
                        self._ttl_s = response.welcome.lease_ttl_s or _TTL_S
                        # Until here the time to the next heartbeat was a guess, and may be longer than the lease.
                        self.beat()
                        backoff.reset()
                        told = False
                        log.info("connected to the scheduler", lease_ttl_s=self._ttl_s)
                    elif response.HasField("desired"):
                        self._desired(response.desired)
                    elif response.HasField("ack"):
                        for id in response.ack.observation_ids:
                            self._spool.ack(f"{OBSERVATION}/{id}")
            except AioRpcError as error:
                heed_cancellation()
                if not told:
                    log.info("the scheduler is away; what runs goes on", error=str(error))
                    told = True
            finally:
                # gRPC leaves the request iterator of a failed call waiting: end it, and let it take nothing over.
                self._call = self._send = None
                queue.put_nowait(None)
            await backoff.wait()

    async def _requests(self, queue: asyncio.Queue[pb.ConnectRequest | None]) -> AsyncIterator[pb.ConnectRequest]:
        yield pb.ConnectRequest(hello=self._hello())
        if self._call is not queue:
            return
        # From here on what is observed waits in the queue: nothing may fall between the spool's list and the queue.
        self._send = queue
        for entry in list(self._spool.pending(kind=OBSERVATION)):
            yield pb.ConnectRequest(attempt=pb.AttemptObservation.FromString(entry.body))
        loop = asyncio.get_running_loop()
        beaten = -math.inf
        while True:
            # By the clock, however much else there is to say: only heartbeats renew the node's lease.
            if (left := beaten + self._ttl_s / 3 - loop.time()) <= 0:
                beaten = loop.time()
                yield self._heartbeat()
                continue
            try:
                async with asyncio.timeout(left):
                    request = await queue.get()
            except TimeoutError:
                continue
            if request is None:
                return
            yield request
