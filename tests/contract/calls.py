"""What tests say about calls: how one is refused, and what stands on the wire when it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from distroml.rpc import RemoteError

PATIENCE_S = 30.0
DETAILS = "grpc-status-details-bin"


def refused(code: str, reason: str) -> Any:
    """`pytest.raises` for a status and a machine-readable reason."""

    def check(error: RemoteError) -> bool:
        assert (error.status, error.reason) == (getattr(grpc.StatusCode, code), reason), repr(error)
        assert error.message, "a refusal says what happened and what to do"
        return True

    return pytest.raises(RemoteError, check=check)


def fields_of(caught: pytest.ExceptionInfo[RemoteError]) -> set[str]:
    """The fields that a refusal calls wrong."""
    return {field for field, _ in caught.value.violations}


async def until(check: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Ask again until `check` gives something, at most `PATIENCE_S`."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await check()):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not happen within {PATIENCE_S:.0f} s: {what}") from None
    return found


async def drained(stream: AsyncIterable[Any]) -> list[Any]:
    """Every message of a stream that ends by itself."""
    return [message async for message in stream]


async def on_the_wire(
    endpoint: str, method: str, request: Message | bytes, *, metadata: tuple[tuple[str, str], ...]
) -> tuple[grpc.StatusCode, ErrorInfo, BadRequest]:
    """How a call is refused, as a client sees it that knows gRPC and google.rpc.Status, and nothing of this project."""
    body = request if isinstance(request, bytes) else request.SerializeToString()
    async with grpc.aio.insecure_channel(endpoint) as channel:
        call = channel.unary_unary(method)(body, metadata=metadata, timeout=PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    status, info, bad = Status(), ErrorInfo(), BadRequest()
    for key, value in caught.value.trailing_metadata() or ():
        if key == DETAILS:
            status.ParseFromString(value)
    assert status.code == caught.value.code().value[0]
    assert status.message == caught.value.details()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad), f"nobody knows what a {detail.type_url} is"
    return caught.value.code(), info, bad
