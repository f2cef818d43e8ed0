"""Stands where telemetry would be, on another machine: takes every push and keeps nothing of it.

`telemetry.py` says its address, and how many bytes it was sent once its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.api.telemetry.v1 import telemetry_pb2_grpc as rpc


class Telemetry(rpc.TelemetryServiceServicer):
    """`bytes` is what it was sent."""

    def __init__(self) -> None:
        self.bytes = 0

    async def Push(self, requests: AsyncIterator[pb.PushRequest], _: Any) -> AsyncIterator[pb.PushResponse]:
        async for request in requests:
            self.bytes += request.ByteSize()
            yield pb.PushResponse(sequence=request.sequence)


async def main() -> None:
    server, telemetry = grpc.aio.server(), Telemetry()
    rpc.add_TelemetryServiceServicer_to_server(telemetry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    print(json.dumps({"bytes": telemetry.bytes}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
