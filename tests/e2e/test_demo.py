"""The demo on embedded defaults, as `make demo` runs it: what it says, writes and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distroml.cli.plane.datafolder import DataFolder
from tests.e2e.conftest import Cli

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_it_trains_loses_a_worker_recovers_and_reports_all_of_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "demo")
    done = Cli(tmp_path / "unused")("demo", "--steps", "40", "--data", str(folder.path), timeout=350)
    assert done.stdout.splitlines()[-1] == f"report: {folder.path / 'report.json'}"
    for told in ("kill -9", "generation 2 formed with 2 workers", "a sample of generated text", "replay verified"):
        assert told in done.stdout
    report = json.loads((folder.path / "report.json").read_text())
    assert report["ok"], report["checks"]
    assert all(report["checks"].values())
    assert (report["steps"], report["world_size"], report["generations"]) == (40, 2, 2)
    assert report["parameters"] > 4_000_000
    # Killed after a checkpoint, and gone on from one; what the victim said last may have died with it.
    assert report["resumed_from_step"] == 20
    assert 0 < report["killed_at_step"] < 40
    assert report["final_loss"] < report["first_loss"]
    assert report["heldout_loss"] < report["first_loss"]
    numbers = ("tokens_per_s", "recovery_s", "checkpoint_bytes_written", "events", "streams_verified", "seconds")
    assert all(report[name] > 0 for name in numbers), report
    assert report["checkpoints_committed"] >= 2
    assert report["plan"].startswith("dp_replicate=2")
    assert (folder.path / "control.sqlite").exists()
    assert not folder.is_locked(), "its control plane has ended"


def test_where_something_did_not_happen_it_says_what_and_fails(tmp_path: Path) -> None:
    """Too short for a checkpoint before its end, so nothing is killed."""
    folder = tmp_path / "demo"
    done = Cli(tmp_path / "unused")("demo", "--json", "--steps", "4", "--data", str(folder), code=1, timeout=350)
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert not report["checks"]["worker was killed by SIGKILL"]
    assert report["checks"]["job succeeded"]
    assert report.pop("report") == str(folder / "report.json")
    assert report == json.loads((folder / "report.json").read_text())
    assert "submitted" in done.stderr
