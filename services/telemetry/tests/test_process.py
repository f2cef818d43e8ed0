from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from worldlog import now_ms, steps

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub
from distroml.eventstore.sqlite import open_event_store
from distroml.rpc import connect

if TYPE_CHECKING:
    from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceAsyncStub


def environ(data: Path, **more: str) -> dict[str, str]:
    (data / "token").write_text("secret")
    (data / "token").chmod(0o600)
    (data / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))

    async def make() -> None:
        await open_event_store(data / "control.sqlite", deployment="dep-1").close()

    asyncio.run(make())
    return {**os.environ, "DISTROML_DATA": str(data), **more}


def answer_of(url: str) -> int | None:
    """The status of an answer, None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


async def push(endpoint: str, samples: list[t.StepSample]) -> None:
    channel = connect(endpoint, "secret")
    call = cast("TelemetryServiceAsyncStub", TelemetryServiceStub(channel)).Push()
    await call.write(t.PushRequest(node="node-a", sequence=1, steps=samples))
    await call.read()
    await call.done_writing()
    await channel.close(None)


def test_the_process_serves_pages_and_metrics_and_drains(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for each in (one, two, three):
            each.bind(("127.0.0.1", 0))
        pages, metrics, calls = (f"127.0.0.1:{x.getsockname()[1]}" for x in (one, two, three))
    env = environ(tmp_path, DISTROML_DASHBOARD_LISTEN=pages, DISTROML_METRICS_LISTEN=metrics, DISTROML_LISTEN=calls)
    process = subprocess.Popen(
        [sys.executable, "-m", "distroml.telemetry"], env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while (code := answer_of(f"http://{pages}/")) is None:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert code == 401
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
            assert b"distroml_train_recovery_seconds_bucket" in answer.read()
        asyncio.run(push(calls, steps("job-a", 1, 5, world=1, end_ms=now_ms())))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert "secret" not in errors
        assert not (tmp_path / ".nicegui").exists()
        # What came in the last moments is in history, too.
        with closing(sqlite3.connect(tmp_path / "history.sqlite")) as history:
            assert history.execute("SELECT sum(n) FROM rollups WHERE metric='loss'").fetchone() == (15,)
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        env = environ(tmp_path, DISTROML_DASHBOARD_LISTEN=address)
        done = subprocess.run(
            [sys.executable, "-m", "distroml.telemetry"], env=env, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert f"cannot start: cannot listen on {address}" in done.stderr


pytestmark = pytest.mark.timeout(100)
