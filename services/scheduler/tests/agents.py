"""An agent as the scheduler sees one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1 import nodes_pb2 as npb
from distroml.api.scheduler.v1.nodes_pb2_grpc import NodeServiceStub
from distroml.events import fresh_id

PATIENCE_S = 10.0


async def until(check: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Ask again until `check` gives something, at most `PATIENCE_S`."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await check()):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"it did not happen within {PATIENCE_S:.0f} s: {what}") from None
    return found


class Agent:
    """An agent as the scheduler sees one: a plain client of NodeService."""

    def __init__(
        self, channel: Any, node: str, slots: int, *, boot: str = "boot-1", agent: str = "", attempts: Any = ()
    ) -> None:
        self.node = node
        self.agent_id = agent or fresh_id("agent")
        self.desired: npb.DesiredState | None = None
        self.acks: list[str] = []
        self.welcome: npb.NodeWelcome | None = None
        self._call = NodeServiceStub(channel).Connect(self._outgoing())
        self._queue: asyncio.Queue[npb.ConnectRequest | None] = asyncio.Queue()
        self._say(
            hello=npb.NodeHello(
                node=node,
                boot_id=boot,
                agent_id=self.agent_id,
                slots=[pb.Slot(id=f"cpu-{index}", kind="cpu") for index in range(slots)],
                address="127.0.0.1",
                attempts=attempts,
            )
        )
        self.beats = True
        self.ahead_s = 0.0
        self._tasks = [asyncio.create_task(self._incoming()), asyncio.create_task(self._beat())]
        self.error: BaseException | None = None

    def _say(self, **kind: Any) -> None:
        self._queue.put_nowait(npb.ConnectRequest(**kind))

    async def _outgoing(self) -> AsyncIterator[npb.ConnectRequest]:
        while (request := await self._queue.get()) is not None:
            yield request

    async def _incoming(self) -> None:
        try:
            async for response in self._call:
                match response.WhichOneof("kind"):
                    case "desired":
                        assert self.desired is None or response.desired.revision > self.desired.revision
                        self.desired = response.desired
                    case "ack":
                        self.acks += response.ack.observation_ids
                    case _:
                        self.welcome = response.welcome
        except Exception as error:
            self.error = error

    async def _beat(self) -> None:
        # What is sent to a server that has just refused the hello hides why it did (gRPC's own INTERNAL).
        while self.welcome is None:
            await asyncio.sleep(0.01)
        while True:
            if self.beats:
                self.heartbeat()
            await asyncio.sleep(0.2)

    def heartbeat(self, applied: int | None = None) -> None:
        revision = applied if applied is not None else 0
        time_ms = round(1000 * (time.time() + self.ahead_s))
        self._say(heartbeat=npb.NodeHeartbeat(applied_revision=revision, time_ms=time_ms))

    def apply(self) -> None:
        """Say that the newest desired state is wholly so."""
        assert self.desired is not None
        self.heartbeat(self.desired.revision)

    def observe(self, job: str, attempt: int, phase: npb.AttemptPhase.ValueType, **more: Any) -> str:
        id_ = more.pop("observation_id", "") or fresh_id("obs")
        self._say(attempt=npb.AttemptObservation(observation_id=id_, job=job, attempt=attempt, phase=phase, **more))
        return id_

    def stopped(self, job: str, attempt: int) -> str:
        return self.observe(job, attempt, npb.ATTEMPT_PHASE_STOPPED)

    def find(self, job: str) -> npb.DesiredAttempt | None:
        found = self.desired.attempts if self.desired else ()
        return next((attempt for attempt in found if attempt.job == job), None)

    async def told(self, job: str, *, stop: str | None = None) -> npb.DesiredAttempt:
        """Wait until the desired state has `job`: running, or with this reason to stop."""

        async def check() -> npb.DesiredAttempt | None:
            found = self.find(job)
            return found if found is not None and found.stop.reason == (stop or "") else None

        return await until(check, f"{self.node} is told to {'run' if stop is None else 'stop'} {job}")

    async def acked(self, *observations: str) -> None:
        async def check() -> bool:
            return set(observations) <= set(self.acks)

        await until(check, f"{observations} are acknowledged")

    async def rid_of(self, job: str) -> None:
        async def check() -> bool:
            return self.desired is not None and self.find(job) is None

        await until(check, f"{self.node} is rid of {job}")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
