"""Prometheus scrapes the demo on the stack: every panel of every dashboard has data, and labels stay few."""

from __future__ import annotations

import json
import math
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import Running
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli import client
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.observability import names
from distroml.observability.recent import MAX_VALUES
from observability.grafana.render import FOLDER
from observability.tests.queries import filled, panels
from tests.e2e.conftest import Cli, tails, wait_for
from tests.e2e.whole.conftest import Demo
from tests.servers import Servers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEP_S = 5


@dataclass(frozen=True)
class Scraped:
    """A running demo, and the Prometheus that looks at it since `began_s`."""

    folder: DataFolder
    cli: Cli
    prometheus: Running
    job: str
    began_s: float

    def get(self, path: str, **asked: object) -> Any:
        url = f"http://127.0.0.1:{self.prometheus.port}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]

    def now(self, query: str) -> list[dict[str, Any]]:
        return self.get("query", query=query)["result"]

    def numbers(self, query: str) -> int:
        """How many samples that are numbers a panel's query has over the whole time."""
        found = self.get("query_range", query=query, start=self.began_s, end=time.time(), step=STEP_S)["result"]
        return sum(math.isfinite(float(value)) for series in found for _, value in series["values"])


@pytest.fixture
def scraped(demo: Demo, servers: Servers) -> Scraped:
    return Scraped(demo.folder, demo.cli, servers.running["prometheus"], demo.job, demo.began_s)


def provoke(scraped: Scraped, folder: Path) -> None:
    """What the demo has no cause for: a job that fails, one that no cluster has room for, a wrong call, bad records."""
    (folder / "fails.py").write_text("raise SystemExit(3)\n")
    failing = scraped.cli.submit("--workers", "1", "--max-failures", "0", "fails.py", cwd=folder)
    assert scraped.cli.wait_state(failing, "FAILED") == "FAILED"
    scraped.cli.submit("--workers", "64", "fails.py", cwd=folder)
    scraped.cli("job", "show", "job-that-never-was", code=None)

    async def push(plane: client.Plane) -> telemetry_pb2.PushResponse:
        call = plane.telemetry.Push()
        bad = telemetry_pb2.StepSample(job="no name of a job", step=1)
        # A script may tell the share of its devices' peak that it uses.
        good = telemetry_pb2.StepSample(job=scraped.job, step=41, step_s=0.1, world_size=2, extra={"mfu": 0.4})
        good.at_ms = time.time_ns() // 1_000_000
        await call.write(telemetry_pb2.PushRequest(node="elsewhere", sequence=1, steps=[bad, good]))
        answer: telemetry_pb2.PushResponse = await call.read()
        await call.done_writing()
        return answer

    assert client.call(scraped.folder.path, push).dropped_samples == 1


def test_every_panel_of_every_dashboard_has_data(scraped: Scraped, tmp_path: Path) -> None:
    services = scraped.folder.services()
    wait_for(lambda: len(scraped.now('up{job="distroml"} == 1')) == len(services), 60, lambda: tails(scraped.folder))
    assert {one["metric"]["service"] for one in scraped.now('up{job="distroml"}')} == set(services)
    provoke(scraped, tmp_path)
    asked = {
        f"{file.stem}: {panel.title}: {query}": filled(query, choices)
        for file in sorted(FOLDER.glob("*.json"))
        for panel in panels(file.read_text("utf-8"))
        for query in panel.queries
        # Everything, as the page opens; and the one job that a link from its page chooses.
        for choices in ({}, *([{"job_id": scraped.job}] if file.stem == "distroml-job" else []))
    }
    empty = set(asked)

    def all_have_data() -> bool:
        empty.difference_update({name for name in empty if scraped.numbers(asked[name])})
        return not empty

    wait_for(all_have_data, 90, lambda: "no data in:\n" + "\n".join(sorted(empty)))


def test_metrics_say_what_happened(scraped: Scraped) -> None:
    job = scraped.job

    def value(query: str) -> float:
        return sum(float(one["value"][1]) for one in scraped.now(query))

    assert value('distroml_scheduler_jobs_finished_total{outcome="failed",category="exit_code"}') == 1
    assert value("distroml_scheduler_jobs_submitted_total") == 3
    assert value('distroml_scheduler_queued_jobs{reason="ExceedsCapacity"}') == 1
    # The demo kills a worker once, and recovers.
    assert value(f'distroml_train_job_failures_total{{job_id="{job}"}}') == 1
    assert value('distroml_train_recovery_seconds_count{category="signal"}') == 1
    assert value(f'distroml_train_last_checkpoint_step{{job_id="{job}"}}') > 0
    assert value("distroml_checkpoints_committed_total") == value(
        'distroml_train_checkpoints_total{outcome="committed"}'
    )
    # Recovering and starting hold slots too: no more than what was held was of use.
    useful = value(f'distroml_train_useful_slot_seconds_total{{job_id="{job}"}}')
    assert 0 < useful < value(f'distroml_scheduler_job_slot_seconds_total{{job_id="{job}"}}')
    leases = {one["metric"]["lease"]: float(one["value"][1]) for one in scraped.now("distroml_lease_held")}
    roles = (
        "scheduler/cycle",
        "scheduler/judge",
        "scheduler/reactor",
        "rendezvous/judge",
        "checkpoint/keeper",
        "relay",
    )
    assert leases == {f"leases/{role}": 1 for role in roles}


def test_labels_stay_few_and_known(scraped: Scraped) -> None:
    of_target = {"__name__", "job", "instance", "service", "deployment", "le"}
    for series in scraped.get("series", **{"match[]": '{__name__=~"distroml_.*"}'}):
        unknown = series.keys() - names.LABEL_BOUNDS.keys() - of_target
        assert not unknown, f"{series['__name__']} has labels whose bound nobody knows: {unknown}"
    jobs = scraped.get("label/job_id/values")
    assert scraped.job in jobs
    assert len(jobs) <= MAX_VALUES
    # What one service tells is of the size of its code, not of what it has seen.
    for one in scraped.now("scrape_samples_scraped"):
        assert float(one["value"][1]) < 2500, one["metric"]


def test_a_sound_demo_is_no_cause_for_alarm(scraped: Scraped) -> None:
    rules = [rule for group in scraped.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    firing = {one["metric"]["alertname"] for one in scraped.now('ALERTS{alertstate="firing"}')}
    # The test drops a record itself; how full this machine's disk is is not ours.
    assert firing <= {"TelemetryDrops", "DiskNearlyFull"}


def test_an_ended_control_plane_leaves_no_targets(scraped: Scraped) -> None:
    file = scraped.folder.path / "prometheus" / "targets.json"
    assert len(json.loads(file.read_text())) == len(scraped.folder.services())
    shared = scraped.prometheus.folder / "targets" / f"{scraped.folder.deployment()}.json"
    assert shared.read_text() == file.read_text()
    assert control.stop(scraped.folder)
    assert not file.exists()
    assert not shared.exists()
    wait_for(lambda: not scraped.get("targets")["activeTargets"], 60)
