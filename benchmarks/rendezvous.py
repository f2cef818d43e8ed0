"""How long a lost worker's replacement waits for rendezvous: its exit report to `formed`, at every node.

Runs the service as its own process on a SQLite file in a fresh folder, with fake agents that answer at once: what is
measured is the service with its commits and gRPC, not the workers.

    python benchmarks/rendezvous.py [--members 2,64] [--rounds 200] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceStub
from distroml.rpc import RemoteError, connect

TOKEN = secrets.token_hex(16)
WARM_UP = 20
STREAMS_PER_CHANNEL = 8


class Agent:
    """One node with one worker; is ready as soon as a generation opens."""

    def __init__(self, stub: Any, job: str, node: str, expected: list[pb.ExpectedMember]) -> None:
        self.worker = f"{job}.1.{node}.0"
        self._join = pb.JoinNode(
            job=job,
            attempt=1,
            node=node,
            agent_id=f"agent-{node}",
            workers=[self.worker],
            expected=expected,
            min_workers=len(expected),
            failures_left=1_000_000,
            store_endpoint=f"{node}:29500",
            address=node,
        )
        self._call = stub.Join()
        self._formed = asyncio.Queue[tuple[int, float]]()
        self._reading: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self._call.write(pb.JoinRequest(join=self._join))
        self._reading = asyncio.create_task(self._read())

    async def formed(self, number: int) -> float:
        """When `formed` of this generation arrived."""
        while True:
            got, at = await self._formed.get()
            if got == number:
                return at

    async def dies(self, number: int) -> None:
        report = pb.WorkerReport(
            report_id=f"{self.worker}-{number}",
            worker=self.worker,
            generation=number,
            exited=pb.WorkerExited(signal=9),
        )
        await self._call.write(pb.JoinRequest(report=report))

    async def _read(self) -> None:
        while isinstance(response := await self._call.read(), pb.JoinResponse):
            match response.WhichOneof("kind"):
                case "opened":
                    ready = pb.MemberReady(after=response.opened.number - 1, workers=[self.worker])
                    await self._call.write(pb.JoinRequest(ready=ready))
                case "formed":
                    self._formed.put_nowait((response.formed.number, time.perf_counter()))
                case _:
                    pass

    def end(self) -> None:
        self._call.cancel()


async def measure(endpoint: str, members: int, rounds: int) -> list[float]:
    """Milliseconds from each exit report to the last node's `formed`."""
    job = f"bench-{members}"
    names = [f"n{index}" for index in range(members)]
    expected = [pb.ExpectedMember(node=name, workers=1) for name in names]
    channels = [connect(endpoint, TOKEN, actor="bench") for _ in range(-(-members // STREAMS_PER_CHANNEL))]
    agents = [Agent(RendezvousServiceStub(channels[i % len(channels)]), job, n, expected) for i, n in enumerate(names)]
    try:
        for agent in agents:
            await agent.begin()
        await asyncio.gather(*(agent.formed(1) for agent in agents))
        took: list[float] = []
        for number in range(1, WARM_UP + rounds + 1):
            started = time.perf_counter()
            await agents[number % members].dies(number)
            arrived = await asyncio.gather(*(agent.formed(number + 1) for agent in agents))
            took.append((max(arrived) - started) * 1000)
        return took[WARM_UP:]
    finally:
        for agent in agents:
            agent.end()
        for channel in channels:
            await channel.close()


async def answering(endpoint: str) -> None:
    async with connect(endpoint, TOKEN) as channel:
        while True:
            try:
                await RendezvousServiceStub(channel).GetGeneration(pb.GetGenerationRequest(job="none"))
            except RemoteError as error:
                if not error.is_transient:
                    return
                await asyncio.sleep(0.05)


@contextmanager
def service(folder: Path) -> Iterator[str]:
    (folder / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-bench"}))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "DISTROML_DATA": str(folder), "DISTROML_LISTEN": endpoint}
    environment["DISTROML_LOG_LEVEL"] = "ERROR"
    process = subprocess.Popen([sys.executable, "-m", "distroml.rendezvous"], env=environment)
    try:
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", default="2,64")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--data", type=Path, default=None, help="where the SQLite file is; a temporary folder else")
    parser.add_argument("--quick", action="store_true", help="20 rounds; rough figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder, service(Path(folder)) as endpoint:

        async def run() -> None:
            await asyncio.wait_for(answering(endpoint), 30)
            for members in map(int, arguments.members.split(",")):
                took = await measure(endpoint, members, 20 if arguments.quick else arguments.rounds)
                cuts = statistics.quantiles(took, n=100)
                print(
                    f"{members:4} members: exit report to formed  p50 {cuts[49]:7.2f} ms  p99 {cuts[98]:7.2f} ms  "
                    f"({len(took)} rounds)"
                )

        asyncio.run(run())


if __name__ == "__main__":
    main()
