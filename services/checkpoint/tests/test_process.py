"""The service as a process: killed and started again, drained by SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from distroml.objectstore.filesystem import open_object_store
from distroml.rpc import RemoteError, connect
from services.checkpoint.tests.workers import Workers, loadable


def prepare(data: Path) -> dict[str, str]:
    (data / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))
    token = data / "token"
    token.write_text("a-token")
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return os.environ | {"DISTROML_DATA": str(data), "DISTROML_LISTEN": f"127.0.0.1:{port}"}


def spawn(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "distroml.checkpoint"], env=environment)


async def answered(stub: CheckpointServiceStub) -> pb.GetLatestResponse:
    async with asyncio.timeout(30):
        while True:
            try:
                return await stub.GetLatest(pb.GetLatestRequest(job="job-a"))
            except RemoteError as error:
                if not error.is_transient:
                    raise
                await asyncio.sleep(0.05)


async def test_kill_and_start_again_in_the_middle_of_a_save(tmp_path: Path):
    environment = prepare(tmp_path)
    workers = Workers(open_object_store(tmp_path / "objects"))
    process = spawn(environment)
    try:
        async with connect(environment["DISTROML_LISTEN"], "a-token") as channel:
            stub = CheckpointServiceStub(channel)
            assert not (await answered(stub)).HasField("checkpoint")
            opened = await stub.BeginSave(workers.begin(10))
            first, last = (workers.write(rank, 10, opened) for rank in (0, 1))
            assert (await stub.ReportShard(first)).missing == 1
            process.kill()
            process.wait()
            process = spawn(environment)
            assert not (await answered(stub)).HasField("checkpoint")
            assert (await stub.ReportShard(first)).missing == 1
            done = await stub.ReportShard(last)
            assert done.committed
            assert loadable(workers.objects, "job-a", done.manifest_hash)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_what_is_wrong_with_its_settings_is_said(tmp_path: Path):
    environment = prepare(tmp_path) | {"DISTROML_CHECKPOINT_KEEP": "0", "DISTROML_CHECKPOINT_REACTOR_TTL_S": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "distroml.checkpoint"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "keep is 0" in done.stderr
    assert "reactor_ttl_s is 0" in done.stderr
