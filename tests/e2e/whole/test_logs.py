"""Lines in a real Elasticsearch: a loud rank, and the server's death and return; every line is counted once."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from deploy.stack import Running
from distroml.logstore.settings import namespace_of
from tests.e2e.conftest import REPOSITORY, Plane, tails, wait_for
from tests.e2e.whole.conftest import JOBS, OnStack
from tests.servers import Servers, gone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
LOUD, QUIET = 200_000, 20
"""Lines that the ranks write in each of three phases."""
BUSY_S = 240
"""Who ships lines stands back for everything else: where no core is idle, it hardly gets on for minutes."""


@pytest.fixture
def server(servers: Servers) -> Running:
    return servers.running["elasticsearch"]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def lines(plane: Plane) -> Counter[str]:
    """What became of workers' lines, as the agent counts."""
    text = get(f"http://{plane.endpoints.metrics['agent']}/metrics")
    return Counter(
        {
            sample.labels["outcome"]: int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "distroml_agent_log_lines_total"
        }
    )


def at_rest(plane: Plane) -> bool:
    """Whether nothing became of any line for a moment."""
    counted = lines(plane)
    time.sleep(2)
    return lines(plane) == counted


def ill(plane: Plane, service: str) -> str:
    """Why a service's log store does not work; empty where it does."""
    health: dict[str, Any] = json.loads(get(f"http://{plane.endpoints.metrics[service]}/healthz"))
    return str(health["parts"].get("log store", {}).get("why", ""))


def found(plane: OnStack, job: str, *words: str) -> list[str]:
    return [line["text"] for line in map(json.loads, plane.told("job", "logs", job, *words, "--json").splitlines())]


@contextmanager
def searching(plane: Plane, job: str) -> Generator[Page]:
    """The tab of the job's page that searches. Nothing in the block may have an event loop of its own."""
    browser = subprocess.run([REPOSITORY / "tools" / "browser"], capture_output=True, text=True, check=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser.stdout.split()[-1], args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = chromium.new_page()
        page.set_default_timeout(90_000)
        page.goto(f"{plane.endpoints.dashboard}/login?token={plane.folder.token()}")
        page.goto(f"{plane.endpoints.dashboard}/jobs/{job}")
        page.get_by_role("tab", name="Search").click()
        yield page
        chromium.close()


def ask(page: Page, words: str) -> None:
    page.get_by_label("words", exact=True).fill(words)
    page.keyboard.press("Enter")


def test_a_loud_job_and_a_server_that_dies_cost_lines_and_nothing_else(
    plane: OnStack, server: Running, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # A job that still waited would keep the slots of the next try.
    request.addfinalizer(lambda: [(tmp_path / name).touch() for name in ("up", "down", "again")])
    # One try before this may have left lines that are still counted.
    wait_for(lambda: at_rest(plane), BUSY_S)
    before = lines(plane)

    def counts() -> Counter[str]:
        return lines(plane) - before

    def explain() -> str:
        return f"{counts()} {ill(plane, 'agent')!r}" + tails(plane.folder)

    def phase(name: str) -> None:
        (tmp_path / name).touch()
        wait_for(lambda: all((tmp_path / f"{name}-{rank}").exists() for rank in (0, 1)), 90, explain)

    job = plane.cli.submit("--workers", "2", "loud.py", str(tmp_path), cwd=JOBS)
    wait_for(lambda: len(found(plane, job, "--search", "ready")) == 2, 150, explain)
    phase("up")
    wait_for(lambda: len(found(plane, job, "--search", '"up quiet"')) == QUIET, 150, explain)
    assert found(plane, job, "--search", "quiet up", "--level", "warning") == [
        "up quiet 0 of 1 WARNING",
        "up quiet 10 of 1 WARNING",
    ]
    # Told in the order of the file: once the lines before those are everywhere they go to.
    wait_for(lambda: "limited" in counts(), BUSY_S, explain)

    with ExitStack() as away:
        with searching(plane, job) as page:
            rows = page.locator(".found .ln")
            ask(page, '"up quiet"')
            expect(rows).to_have_count(QUIET, timeout=90_000)
            expect(rows.first).to_contain_text("up quiet 19 of 1")
            away.enter_context(gone(server))
            # What telemetry has itself would answer: it is Elasticsearch that is asked.
            ask(page, "quiet")
            expect(page.get_by_role("alert")).to_contain_text("Elasticsearch is not reached", timeout=90_000)
        phase("down")
        # What may be shipped goes on filling the buffer until the oldest have to go.
        wait_for(lambda: counts()["full"], BUSY_S, explain)
        assert "not reached" in ill(plane, "agent")
        said = plane.cli("job", "logs", job, "--search", "quiet", code=3)
        assert "Elasticsearch is not reached" in said.stderr
        assert "down quiet 19 of 1" in plane.told("job", "logs", job, "--rank", "1")
    # On a busy machine it takes a minute and more to begin.
    wait_for(lambda: not ill(plane, "agent"), 240, explain)

    phase("again")
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED"
    written = 2 + 3 * (LOUD + QUIET)
    wait_for(lambda: counts().total() == written, BUSY_S, explain)
    assert counts().keys() == {"shipped", "full", "limited"}
    url = server.server.settings(server.ports)["DISTROML_ELASTICSEARCH"]
    stream = f"logs-distroml.worker-{namespace_of(plane.folder.deployment())}"
    there = f"{url}/{stream}/_count?q=distroml.job:%22{job}%22"
    wait_for(lambda: json.loads(get(there))["count"] == counts()["shipped"], BUSY_S, explain)
    assert found(plane, job, "--search", '"again quiet"', "--rank", "1", "-n", "5")[-1] == "again quiet 19 of 1 "
    assert found(plane, job, "--rank", "0", "--since", "1h", "-n", "1") == [f"again loud {LOUD - 1} {'x' * 80}"]
    # The files hold everything, and nothing befell the job.
    files = [file for file in (plane.folder.path / "node").rglob("stdout") if job in str(file)]
    kept = [file.read_bytes().count(b"\n") for file in files]
    assert sorted(filter(None, kept)) == [1 + 3 * QUIET, 1 + 3 * LOUD]
    told = plane.ask("job", "show", job)
    assert (int(told["generation"]), int(told.get("failures", 0))) == (1, 0)
