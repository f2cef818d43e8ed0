"""The scheduler as a process of its own, on a data folder, killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.rpc import RemoteError, connect

TOKEN = "the-token"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "format.json").write_text('{"format": 1, "deployment": "dep-1"}')
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    return tmp_path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.asynccontextmanager
async def scheduler(data: Path, port: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    environ = {**os.environ, "DISTROML_DATA": str(data), "DISTROML_LISTEN": f"127.0.0.1:{port}"}
    with (data / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "distroml.scheduler", env=environ, stdout=log, stderr=log
        )
    try:
        async with connect(f"127.0.0.1:{port}", TOKEN) as channel:
            yield process, JobServiceStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answer(stub: Any, request: Any) -> Any:
    """The answer to GetJob or SubmitJob, once the process serves."""
    call = stub.SubmitJob if isinstance(request, pb.SubmitJobRequest) else stub.GetJob
    async with asyncio.timeout(20):
        while True:
            try:
                return await call(request, timeout=2)
            except RemoteError as error:
                if not error.is_transient:
                    raise
                await asyncio.sleep(0.05)


async def test_nothing_that_was_answered_is_lost_by_kill_9(data: Path):
    port = free_port()
    spec = pb.JobSpec(name="gpt", command=["train.py"])
    async with scheduler(data, port) as (process, stub):
        job = await answer(stub, pb.SubmitJobRequest(spec=spec, request_id="req-1"))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with scheduler(data, port) as (process, stub):
        again = await answer(stub, pb.GetJobRequest(job=job.id))
        assert (again.version, again.spec.name) == (job.version, "gpt")
        repeated = await answer(stub, pb.SubmitJobRequest(spec=spec, request_id="req-1"))
        assert repeated.id == job.id
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0


async def test_settings_that_are_wrong_end_it_with_one_line_each(tmp_path: Path):
    environ = {**os.environ, "DISTROML_DATA": str(tmp_path / "nowhere"), "DISTROML_SCHEDULER_NODE_TTL_S": "soon"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "distroml.scheduler", env=environ, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"DISTROML_SCHEDULER_NODE_TTL_S='soon'" in errors
    assert b"no token" in errors
    assert b"Traceback" not in errors
