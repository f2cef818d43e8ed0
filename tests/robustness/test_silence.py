"""Whatever is silent for longer than leases of nodes and members: others are not evicted for it, and it is fenced.

Leases are short here, and nobody is killed: an agent takes longer to start on a busy machine than they last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from distroml.cli.plane.control import connect_or_fail
from tests.e2e.conftest import Plane, wait_for
from tests.robustness.otherhost import OtherHost, other_host
from tests.robustness.record import Record
from tests.robustness.stack import LONGEST_S, Stack, Training, standing_still, troubles

TTL_S = 8
SILENT_STEPS = 300 if os.environ.get("SOAK_S") else 100
"""How long a silence is in steps, of a tenth of a second or more: longer than the leases."""
NOTICED = {"etcd": "etcd", "nats": "nats", "minio": "objects"}
"""What services soon call a server that is silent; PostgreSQL has more time for an answer."""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    return {"DISTROML_SCHEDULER_NODE_TTL_S": str(TTL_S), "DISTROML_RENDEZVOUS_MEMBER_TTL_S": str(TTL_S)}


@pytest.mark.parametrize("still", ["etcd", "nats", "minio", "postgres", "all"])
def test_servers_that_stood_still_for_longer_than_leases(
    stacked: Plane, stack: Stack, training: Training, record: Record, still: str
) -> None:
    names = [*stack.servers] if still == "all" else [still]
    noticed = {NOTICED[name] for name in names if name in NOTICED}
    with training.undisturbed(), stack.stopped(*names):
        record.befell("stood still", *names)
        training.goes_on(SILENT_STEPS)
        wait_for(lambda: noticed <= troubles(stacked, "scheduler").keys(), 60, training.words)
        if "etcd" not in names:
            training.orders_go_on()


def test_a_node_that_was_silent_for_longer_than_its_lease_is_fenced_and_taken_back(
    stacked: Plane, training: Training, record: Record, tmp_path: Path
) -> None:
    with training.undisturbed(), other_host(stacked, tmp_path / "other") as host:
        there = Training(stacked, tmp_path / "job")
        there.folder.mkdir()
        there.submit()
        wait_for(there.committed, 240, there.words)
        record.befell("cut off", "agent")
        _lose(there, host, attempt=1, how="cut off")
        # Telemetry with it, whose death its supervisor must not decide.
        supervisor = psutil.Process(connect_or_fail(stacked.folder).supervisor)
        with standing_still([supervisor, psutil.Process(stacked.pid("telemetry"))]):
            record.befell("stood still", "agent", "telemetry")
            _lose(there, host, attempt=2, how="standing still")
        there.cancel()
    # No two processes trained for one rank at a time, and none after its successor had begun.
    for rank in there.pace.made():
        processes = there.pace.processes(rank)
        assert len(processes) == len(set(processes)) == 3
    assert [int(e["attempt"]) for e in there.data("AttemptStarted")] == [1, 2, 3]
    saves = [(int(e["generation"]), int(e["step"])) for e in there.data("Committed")]
    assert saves == sorted(saves)
    steps = [step for _, step in saves]
    assert steps == sorted(set(steps)), "what was committed once is not trained again"
    assert int(stacked.cli.json("job", "show", there.job).get("failures", 0)) == 0


def _lose(there: Training, host: OtherHost, *, attempt: int, how: str) -> None:
    """Silence the node until it is lost and its job waits again; returns when the next attempt has saved."""
    since = there.pace.made()
    with host.cut_off() if how == "cut off" else host.standing_still():
        there.goes_on(SILENT_STEPS)
        there.plane.cli.wait_state(there.job, "QUEUED", timeout=120)
        wait_for(lambda: len(there.data("MemberLost")) == attempt, 60, there.words)
        at = there.committed()
        # It trains on, and what it saves counts for nothing.
        there.goes_on()
        assert there.committed() == at
        assert there.pace.longest_s(since) < LONGEST_S
    wait_for(lambda: there.committed() > at, 120, there.words)
    broken = max(int(e["number"]) for e in there.data("GenerationBroken"))
    assert all(int(e["generation"]) > broken for e in there.data("Committed") if int(e["step"]) > at)
