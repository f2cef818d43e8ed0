"""A servicer of every kind of call, on messages of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.rpc import caller

NAME = "distroml.test.Echo"


class Echo:
    """Answers with what `answer` makes of the request; tells who called."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answer: Callable[[str], str] = lambda text: text
        self.release = asyncio.Event()
        self.ended: list[str] = []

    def _note(self) -> None:
        self.seen.append(caller())

    async def unary(self, request: pb.StreamState, context: Any) -> pb.StreamState:
        self._note()
        if request.stream == "wait":
            await self.release.wait()
        return pb.StreamState(json=self.answer(request.json))

    async def down(self, request: pb.StreamState, context: Any) -> AsyncIterator[pb.StreamState]:
        self._note()
        try:
            for index in range(request.version):
                yield pb.StreamState(version=index, json=self.answer(request.json))
            if request.stream == "wait":
                await self.release.wait()
        finally:
            self.ended.append(type(caller()).__name__)

    async def up(self, requests: AsyncIterator[pb.StreamState], context: Any) -> pb.StreamState:
        self._note()
        texts = [request.json async for request in requests]
        return pb.StreamState(json=self.answer("+".join(texts)))

    async def both(self, requests: AsyncIterator[pb.StreamState], context: Any) -> AsyncIterator[pb.StreamState]:
        self._note()
        async for request in requests:
            yield pb.StreamState(json=self.answer(request.json))


def add_to_server(servicer: Echo, server: Any) -> None:
    kinds = {
        "unary": grpc.unary_unary_rpc_method_handler,
        "down": grpc.unary_stream_rpc_method_handler,
        "up": grpc.stream_unary_rpc_method_handler,
        "both": grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: make(getattr(servicer, name), pb.StreamState.FromString, pb.StreamState.SerializeToString)
        for name, make in kinds.items()
    }
    server.add_registered_method_handlers(NAME, handlers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


class EchoStub:
    def __init__(self, channel: Any) -> None:
        ends = {
            "request_serializer": pb.StreamState.SerializeToString,
            "response_deserializer": pb.StreamState.FromString,
        }
        self.unary = channel.unary_unary(f"/{NAME}/unary", **ends)
        self.down = channel.unary_stream(f"/{NAME}/down", **ends)
        self.up = channel.stream_unary(f"/{NAME}/up", **ends)
        self.both = channel.stream_stream(f"/{NAME}/both", **ends)
        self.nothing = channel.unary_unary(f"/{NAME}/nothing", **ends)
