"""A plan from its choice to its measurement: events, explanation and read model of a real job."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from distroml.planner import Plan
from distroml.planner.picture import Drawing
from tests.e2e.conftest import Plane, tails

JOBS = Path(__file__).parent / "jobs"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_a_plan_is_told_measured_and_explained(plane: Plane, tmp_path: Path) -> None:
    # What other runs measured here stays out of it.
    cache = f"XDG_CACHE_HOME={tmp_path}"
    job = plane.cli.submit("--workers", "2", "--env", cache, "--compress", "int8", "planned.py", "40", cwd=JOBS)
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    told = {event["type"].rpartition(".")[2]: event["data"] for event in plane.cli.events(job)}

    chosen, measured = told["PlanChosen"], told["PlanMeasured"]
    plan = Plan(**{**json.loads(chosen["plan"]), "order": tuple(json.loads(chosen["plan"])["order"])})
    assert plan.world_size == 2
    prediction = json.loads(chosen["prediction"])
    assert sum(prediction["parts"]["seconds"].values()) == pytest.approx(prediction["step_seconds"])
    # Compression is priced, and timed on the workers.
    packed = prediction["compression"]
    assert packed["codec_measured"]
    assert packed["scheme"] == ("int8" if plan.dp_replicate > 1 else "none")
    assert Drawing.from_json(json.dumps(prediction["drawing"])).plan.mesh == plan.mesh
    assert json.loads(told["LinksProbed"]["topology"])["levels"]
    digest = chosen["alternatives_hash"]
    (kept,) = plane.folder.path.rglob(f"{digest}.json*")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == digest
    assert json.loads(kept.read_bytes())[: len(json.loads(chosen["best"]))] == json.loads(chosen["best"])

    assert int(measured["steps"]) == 20
    assert measured["step_seconds"] > 0
    assert measured["predicted_step_seconds"] == pytest.approx(prediction["step_seconds"])
    assert measured["verdict"] in ("AsPredicted", "Slower", "Faster")

    told = plane.cli.json("job", "explain", job)
    # The trainer took its compression from the job; under a plan without replicas there is nothing to compress.
    assert ("warning" in told) == (plan.dp_replicate == 1)
    (explained,) = told["plans"]
    assert explained["plan"] == str(plan)
    assert explained["verdict"] == measured["verdict"]
    assert explained["alternatives_hash"] == digest
    assert plane.cli.json("job", "explain", job, "--plans")["alternatives"] == json.loads(kept.read_bytes())
    text = plane.cli("job", "explain", job, "--plans").stdout
    assert f"plan of generation 1: {plan}" in text
    assert f"{len(json.loads(kept.read_bytes()))} other plans were possible" in text
    assert "measured" in text
    assert f"plan={plan}" in plane.cli("events", job).stdout

    # The same model under a given plan: what the first job surveyed serves for its prediction.
    asked = ("--workers", "2", "--env", cache, "--compress", "int8", "planned.py", "24", "dp_replicate=2")
    given = plane.cli.submit(*asked, cwd=JOBS)
    assert plane.cli.wait_state(given, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    (explained,) = plane.cli.json("job", "explain", given)["plans"]
    assert explained["predicted_step_seconds"] > 0 < explained["step_seconds"]
    assert explained["verdict"] in ("AsPredicted", "Slower", "Faster")
    assert "the plan was given, not searched for" in explained["reasons"]
    assert any("compress=int8: a rank sends" in reason for reason in explained["reasons"])
