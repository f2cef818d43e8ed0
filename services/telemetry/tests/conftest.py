from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import Threaded, World

from distroml.telemetry.settings import Limits


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with World(tmp_path, Limits(log_lines=200, log_bytes=200_000, line_bytes=1000, events=100)).running() as w:
        yield w


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Threaded]:
    """One world with a dashboard for all browser tests: NiceGUI's routes belong to the process."""
    with Threaded(tmp_path_factory.mktemp("telemetry")).running() as threaded:
        yield threaded


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser, installed by `tools/browser` where the machine has none."""
    script = Path(__file__).parents[3] / "tools" / "browser"
    found = subprocess.run([script], capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip().splitlines()[-1]
