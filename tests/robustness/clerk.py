"""Gives one order after another to a job, each until it is accepted: `python -m tests.robustness.clerk FOLDER JOB`.

The nth order sets the job's priority to n, always under one request id: what is lost or carried out twice shows in
the job's events. Lines of `FOLDER/addresses` are addresses of schedulers, asked in turn; lines of `FOLDER/accepted` are
orders that were accepted, and lines of `FOLDER/refused` say whatever else than an outage kept one from being accepted.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from distroml.api.scheduler.v1 import jobs_pb2, jobs_pb2_grpc
from distroml.rpc import connect
from distroml.rpc.errors import RemoteError

_PAUSE_S = 0.2
_PATIENCE_S = 3.0
# The scheduler, or etcd behind it, is away, or it has no room.
_OUTAGES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")


async def order(address: str, token: str, job: str, number: int) -> RemoteError | None:
    """Give the order once; None where it was accepted."""
    async with connect(address, token) as channel:
        request = jobs_pb2.SetPriorityRequest(job=job, request_id=f"clerk-{number}", priority=number)
        try:
            await jobs_pb2_grpc.JobServiceStub(channel).SetPriority(request, timeout=_PATIENCE_S)
        except RemoteError as error:
            return error
        return None


async def work(folder: Path, token: str, job: str) -> None:
    """Until killed."""
    number = turn = 0
    with (
        (folder / "accepted").open("a", buffering=1) as accepted,
        (folder / "refused").open("a", buffering=1) as refused,
    ):
        while True:
            number += 1
            while True:
                addresses = (folder / "addresses").read_text().split()
                error = await order(addresses[turn % len(addresses)], token, job, number)
                if error is None:
                    break
                if error.status.name not in _OUTAGES:
                    refused.write(f"{number}: {error.status.name} {error.message}\n")
                turn += 1
                await asyncio.sleep(_PAUSE_S)
            accepted.write(f"{number}\n")
            await asyncio.sleep(_PAUSE_S)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2]).read_text().strip(), sys.argv[3]))
