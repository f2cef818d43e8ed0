"""What a soak tells of itself, and how steps that were lost are counted."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.pace import Pace
from tests.robustness.record import Record, Trained, open_record


def kept(record: Record) -> dict[str, Any]:
    assert record.path is not None
    return json.loads(record.path.read_text())


def test_each_fault_is_on_record_at_once_by_kind_and_by_whom_it_befell(tmp_path: Path) -> None:
    record = open_record({"SOAK_RECORD": str(tmp_path / "soaks" / "one.json"), "SOAK_S": "600"})
    record.run["seed"] = 4711
    for whom in (["etcd"], ["nats"], ["etcd"]):
        record.befell("killed", *whom)
        assert kept(record)["befell"]["killed"][whom[0]] == record.faults["killed"][whom[0]]
    record.befell("stood still", "etcd", "nats")
    found = kept(record)
    assert (found["faults"], found["run"]["seed"], found["run"]["kills_s"]) == (5, 4711, 600)
    assert found["befell"] == {"killed": {"etcd": 2, "nats": 1}, "stood still": {"etcd": 1, "nats": 1}}
    assert [path.name for path in (tmp_path / "soaks").iterdir()] == ["one.json"]
    assert "  killed 3 (etcd 2, nats 1)" in record.lines()


def test_of_a_job_the_longest_time_between_two_steps_stays_on_record(tmp_path: Path) -> None:
    record = Record(tmp_path / "one.json")
    record.trained("job-1", Trained(steps=100, longest_s=0.8, usual_s=0.2))
    record.trained("job-1", Trained(steps=200, lost=3, longest_s=0.5, usual_s=0.2))
    record.checked("commits", 12)
    job = kept(record)["jobs"]["job-1"]
    assert (job["steps"], job["lost"], job["longest_s"]) == (200, 3, 0.8)
    assert any("200 steps, 3 lost" in line and "0.80 s (0.20 s" in line for line in record.lines())
    assert "checked: 12 commits" in record.lines()


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ([("setup", "passed")], "begun"),
        ([("setup", "passed"), ("call", "passed"), ("teardown", "passed")], "passed"),
        ([("setup", "passed"), ("call", "failed"), ("teardown", "passed")], "failed"),
        ([("setup", "passed"), ("call", "passed"), ("teardown", "failed")], "failed"),
        ([("setup", "failed"), ("teardown", "passed")], "failed"),
        ([("setup", "skipped"), ("teardown", "passed")], "skipped"),
    ],
)
def test_a_test_passed_only_where_all_of_it_did(tmp_path: Path, outcomes: list[tuple[str, str]], told: str) -> None:
    record = Record(tmp_path / "one.json")
    assert not record.passed
    for when, outcome in outcomes:
        record.tested("one", when, outcome, f"{when} says why")
    assert kept(record)["tests"] == {"one": told}
    guilty = [f"{when} says why" for when, outcome in outcomes if outcome != "passed"]
    assert [*kept(record)["failures"].values()] == guilty[:1]
    assert kept(record)["passed"] == (told == "passed")


def test_nothing_is_written_where_nobody_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_record({}).befell("killed", "etcd")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [([], 0), ([1, 2, 3], 0), ([21, 22, 23], 0), ([1, 2, 3, 2, 3, 4], 2), ([1, 2, 5], 2), ([1, 2, 2, 4], 2)],
)
def test_steps_that_were_made_again_or_never_are_counted_as_lost(tmp_path: Path, numbers: list[int], lost: int) -> None:
    # The last one is being written.
    (tmp_path / "numbers-1").write_bytes(struct.pack(f"<{len(numbers)}q", *numbers) + b"\x01")
    assert Pace(tmp_path).lost() == lost
