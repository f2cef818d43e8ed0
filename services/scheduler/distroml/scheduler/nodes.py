"""NodeService: one stream per agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final

from distroml.api.scheduler.v1 import nodes_pb2 as pb
from distroml.api.scheduler.v1.nodes_pb2_grpc import NodeServiceServicer
from distroml.observability import bound, logger
from distroml.rpc import errors
from distroml.rpc.clocks import Clocks
from distroml.scheduler.board import Board
from distroml.scheduler.liveness import NodeLeases
from distroml.scheduler.metrics import AGENTS
from distroml.scheduler.session import Session, refused_hello
from distroml.scheduler.signals import heard
from distroml.scheduler.streams import Streams

log = logger(__name__)

HELLO_S: Final = 10.0
"""An agent says hello within this, seconds, or is told to dial again."""


class NodeServer(NodeServiceServicer):
    """See the contract, `proto/distroml/api/scheduler/v1/nodes.proto`."""

    def __init__(self, streams: Streams, board: Board, leases: NodeLeases, clocks: Clocks, *, deployment: str) -> None:
        self._streams, self._board, self._leases, self._deployment = streams, board, leases, deployment
        self._clocks = clocks
        self._sessions: dict[str, Session] = {}

    async def Connect(
        self, request_iterator: AsyncIterable[pb.ConnectRequest], context: Any
    ) -> AsyncIterator[pb.ConnectResponse]:
        """Desired state and acknowledgements down; heartbeats and observations up."""
        requests = aiter(request_iterator)
        session = self._admitted(await _hello(requests))
        with bound(node=session.node), self._board.changed.listening(session.woken):
            AGENTS.inc()
            reader: asyncio.Task[None] | None = None
            try:
                yield pb.ConnectResponse(
                    welcome=pb.NodeWelcome(deployment=self._deployment, lease_ttl_s=self._leases.ttl_s)
                )
                await session.greet()
                reader = asyncio.create_task(self._read(session, requests))
                while not reader.done():
                    for response in session.news():
                        yield response
                    if session.replaced:
                        text = f"another agent of node {session.node} has connected; if this one still runs, end it"
                        raise errors.Aborted("AgentReplaced", text, node=session.node)
                    await heard(session.woken)
                await reader
            finally:
                AGENTS.dec()
                if reader is not None:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
                if self._sessions.get(session.node) is session:
                    del self._sessions[session.node]
                    self._clocks.forget(_whose(session))

    def _admitted(self, hello: pb.NodeHello) -> Session:
        if wrong := refused_hello(hello):
            raise errors.InvalidArgument(wrong)
        before = self._sessions.get(hello.node)
        if before is not None and before.boot_id != hello.boot_id:
            # Two machines under one name would take the node from one another for ever.
            text = (
                f"node {hello.node} is connected from another machine or boot; give this one another name, "
                "or wait until the other's stream has ended"
            )
            raise errors.AlreadyExists("NodeNameTaken", text, node=hello.node)
        session = Session(self._streams, self._board, self._leases, hello)
        if before is not None:
            before.replaced = True
            before.woken.set()
        self._sessions[hello.node] = session
        return session

    async def _read(self, session: Session, requests: AsyncIterator[pb.ConnectRequest]) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("kind"):
                    case "heartbeat":
                        # Agents of an older release don't say it.
                        if request.heartbeat.time_ms:
                            self._clocks.note(_whose(session), request.heartbeat.time_ms / 1000)
                        await session.heartbeat(request.heartbeat)
                    case "attempt":
                        await session.observe(request.attempt)
                    case _:
                        raise errors.InvalidArgument([("kind", "only heartbeats and observations follow a hello")])
        finally:
            session.woken.set()


def _whose(session: Session) -> str:
    return f"node {session.node}"


async def _hello(requests: AsyncIterator[pb.ConnectRequest]) -> pb.NodeHello:
    try:
        async with asyncio.timeout(HELLO_S):
            first = await anext(requests, None)
    except TimeoutError:
        raise errors.DeadlineExceeded("NoHello", f"no hello came within {HELLO_S:.0f} s; dial again") from None
    if first is None or first.WhichOneof("kind") != "hello":
        raise errors.InvalidArgument([("hello", "the first message of the stream must be the agent's hello")])
    return first.hello
