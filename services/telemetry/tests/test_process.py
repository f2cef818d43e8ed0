from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from distroml.eventstore.sqlite import open_event_store


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


def test_the_process_serves_pages_and_metrics_and_drains(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        pages, metrics = (f"127.0.0.1:{x.getsockname()[1]}" for x in (one, two))
    env = environ(tmp_path, DISTROML_DASHBOARD_LISTEN=pages, DISTROML_METRICS_LISTEN=metrics)
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
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert "secret" not in errors
        assert not (tmp_path / ".nicegui").exists()
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
