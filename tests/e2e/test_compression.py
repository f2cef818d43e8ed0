"""Compression of a real job, from the hint at `auto` to what it chooses: events, explanation and read model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Plane, tails

JOBS = Path(__file__).parent / "jobs"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def told(plane: Plane, job: str, kind: str) -> list[dict[str, Any]]:
    """The bodies of the job's events of a kind."""
    return [event["data"] for event in plane.cli.events(job) if event["type"].endswith(f".{kind}")]


def test_who_waits_for_gradients_is_told_of_auto_which_then_compresses(plane: Plane) -> None:
    plain = plane.cli.submit("--workers", "2", "waits.py", "40", cwd=JOBS)
    assert plane.cli.wait_state(plain, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    (advised,) = told(plane, plain, "CompressionAdvised")
    assert advised["exposed_seconds"] > 0.1 * advised["step_seconds"]
    assert advised["predicted_step_seconds"] < advised["step_seconds"]
    assert told(plane, plain, "SchemeChanged") == [], "nothing lossy is on unasked"
    assert "--compress auto would make a step of" in plane.cli("job", "explain", plain).stdout

    job = plane.cli.submit("--workers", "2", "--compress", "auto", "waits.py", "60", cwd=JOBS)
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    changes = told(plane, job, "SchemeChanged")
    assert changes, "a link is chosen for before the first step, or once steps have shown what they take"
    assert changes[0]["from_scheme"] == "none"
    assert changes[0]["reason"] in ("LinkProbed", "Faster", "LinkSlower")
    assert "the links" in changes[0]["why"]
    assert told(plane, job, "CompressionAdvised") == []
    text = plane.cli("job", "explain", job).stdout
    assert "compression of generation 1: " in text
    assert f"none → {changes[0]['to_scheme']}, {changes[0]['reason']}: {changes[0]['why']}" in text
    assert f"change=none→{changes[0]['to_scheme']}" in plane.cli("events", job).stdout
