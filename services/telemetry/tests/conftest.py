from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from psycopg import sql
from world import Threaded, World, a_running_job

from deploy.stack.registry import server
from deploy.stack.running import Running, running
from distroml.telemetry.settings import Limits

_numbers = itertools.count(1)
# A page on a busy machine takes its time; what never comes fails all the same.
expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """A PostgreSQL server of this session; who stops it starts it again."""
    with running(server("postgres"), tmp_path_factory.mktemp("postgres")) as begun:
        yield begun
        # Its data goes with it: an end in order would write it out first.
        begun.kill()


@pytest.fixture
def database(postgres: Running) -> str:
    """The address of a new database."""
    made = postgres.server.settings(postgres.ports)["DISTROML_POSTGRES"]
    name = f"test{next(_numbers)}"
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{made.rpartition('/')[0]}/{name}"


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


ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Generator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def fed(served: Threaded) -> Threaded:
    served.do(a_running_job(served.world))
    return served


@pytest.fixture
def wide(browser: Browser, fed: Threaded) -> Generator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
    context.request.get(fed.world.dashboard.login_url)
    yield context
    context.close()
