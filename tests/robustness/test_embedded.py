"""Faults of the embedded deployment, whose services share one file: no room for it, and a service still with its lock.

`tests/e2e/test_faults.py` has the deaths of its services, its supervisor and its workers.
"""

from __future__ import annotations

import asyncio
import fcntl
import random
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from distroml.cli.plane import control
from distroml.cli.plane.datafolder import SERVICES, DataFolder
from distroml.rpc.errors import RemoteError
from tests.e2e.conftest import Cli, Plane, wait_for
from tests.robustness.clerk import order
from tests.robustness.stack import JOBS, Training, all_well, disk, pid_of, troubles

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
TTL_S = 8
"""Of nodes and members, and less than a full disk lasts here."""
WRITES = 120
"""The byte of SQLite's shared memory that is locked by whoever is in a write transaction of a file in WAL mode."""

Place = tuple[str, str, str]
"""A kind of lock, the inode of its file, and its first byte."""


@contextmanager
def embedded(folder: Path) -> Generator[Plane]:
    """A control plane in its data folder alone, with two slots."""
    data = DataFolder(folder)
    endpoints = control.start(data, slots=2)
    try:
        yield Plane(data, endpoints, Cli(data.path))
    finally:
        control.stop(data)


# ---- a full disk


def test_a_full_disk_under_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DISTROML_SCHEDULER_NODE_TTL_S", "DISTROML_RENDEZVOUS_MEMBER_TTL_S"):
        monkeypatch.setenv(variable, f"{TTL_S}")
    (tmp_path / "job").mkdir()
    with disk(tmp_path / "data") as small, embedded(small.folder) as plane:
        training = Training(plane, tmp_path / "job", steps=120)
        training.lead(25)
        training.submit()
        wait_for(lambda: training.committed() == 20, 120, training.words)
        with small.full():
            # What SQLite has set aside for its next writes takes some orders.
            accepted, refused = asyncio.run(_orders_until_refused(plane, training.job))
            assert (refused.reason, "Free some disk space" in refused.message) == ("StoreFull", True), refused
            training.lead(55)
            wait_for(lambda: training.pace.slowest() == 55, 90, training.words)
            for rank in (0, 1):
                wait_for(lambda r=rank: "no room" in _said_of_step(training, r, 40), 90, training.words)
            for service in ("scheduler", "rendezvous", "checkpoint"):
                wait_for(lambda s=service: "no room" in troubles(plane, s).get("store", ""), 60, training.words)
            _is_told_clearly(plane, training)
            assert training.committed() == 20
        # It makes no step meanwhile, and so no other save.
        wait_for(lambda: _failed(training, 40), 60, training.words)
        assert "no room" in _failed(training, 40)
        wait_for(lambda: all_well(plane), 60, training.words)
        assert training.committed() == 20
        assert plane.cli("checkpoints", "verify", training.job).stdout.startswith("sound")
        wait_for(lambda: not asyncio.run(_order(plane, training.job, accepted + 1)), 60, training.words)
        training.lead(training.steps)
        assert plane.cli.wait_state(training.job, "SUCCEEDED", "FAILED") == "SUCCEEDED", training.words()
        assert training.committed() > 40
        assert [int(e["priority"]) for e in training.data("PriorityChanged")] == list(range(1, accepted + 2))
        _nothing_is_lost_or_doubled(training)


async def _order(plane: Plane, job: str, number: int) -> RemoteError | None:
    return await order(plane.endpoints.services["scheduler"], plane.folder.token(), job, number)


async def _orders_until_refused(plane: Plane, job: str) -> tuple[int, RemoteError]:
    """How many were accepted, and why the next one was not."""
    accepted = 0
    while True:
        error = await _order(plane, job, accepted + 1)
        if error is None:
            accepted += 1
        elif error.status.name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            return accepted, error


def _said_of_step(training: Training, rank: int, step: int) -> str:
    """What the job's own process was warned of."""
    said = (training.folder / f"saves-{rank}").read_text().splitlines()
    return next((line for line in said if f"step {step}" in line), "")


def _failed(training: Training, step: int) -> str:
    """Why the log says that a save failed; empty where it does not."""
    return next((e["message"] for e in training.data("SaveFailed") if int(e["step"]) == step), "")


def _is_told_clearly(plane: Plane, training: Training) -> None:
    """By `doctor`, and by whatever would write."""
    found = plane.cli.json("doctor", code=1)
    (room,) = (one for one in found if one["check"] == "disk")
    assert (room["verdict"], room["text"].split()[1]) in (("problem", "B"), ("problem", "kB")), room
    for service in ("scheduler", "rendezvous", "checkpoint"):
        parts = " ".join(one["text"] for one in found if one["check"] == service and one["verdict"] == "warning")
        assert "no room" in parts, found
    assert "no room" in plane.cli("submit", "steady.py", cwd=JOBS, code=None).stderr
    # What only reads is answered.
    (kept,) = plane.cli.json("checkpoints", "list", training.job)
    assert (int(kept["step"]), kept["state"]) == (20, "Committed")


def _nothing_is_lost_or_doubled(training: Training) -> None:
    """One attempt in one generation, each event of the job once, and a log that gives the states that there are."""
    assert len(training.data("AttemptStarted")) == 1
    assert len(training.data("GenerationFormed")) == 1
    assert training.data("MemberLost") == []
    for name in ("StepRecorded", "Committed"):
        steps = [int(e["step"]) for e in training.data(name)]
        assert steps == sorted(set(steps)), name
    assert "replay verified" in training.plane.cli("replay", "--verify").stdout


# ---- a service that stands still with the lock


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """A job on a control plane of this file, and the clerk who gives it orders."""
    with embedded(tmp_path_factory.mktemp("embedded")) as plane:
        made = Training(plane, tmp_path_factory.mktemp("job"))
        try:
            made.start()
            yield made
        finally:
            made.end_clerk()


@pytest.mark.parametrize("where", ["first in the queue", "in a transaction"])
def test_a_service_that_stands_still_with_the_write_lock_is_replaced(training: Training, where: str) -> None:
    plane = training.plane
    others = {service: plane.pid(service) for service in SERVICES if service != "scheduler"}
    with training.undisturbed():
        stopped = _stop(plane, where)
        places = _places(plane.folder.path / "control.sqlite")
        wait_for(lambda: any(place in places for place, _ in _locks(waiting=True)), 60, training.words)
        orders = training.accepted()
        wait_for(lambda: pid_of(plane, "scheduler") not in (0, stopped.pid), 60, training.words)
        # What waited is written, and who waited has not been taken for silent.
        wait_for(lambda: training.accepted() > orders, 60, training.words)
        assert {service: plane.pid(service) for service in others} == others


def test_in_the_end_every_order_was_carried_out_once(training: Training) -> None:
    training.end_clerk()
    training.cancel()
    orders = [int(e["priority"]) for e in training.data("PriorityChanged")]
    assert orders == list(range(1, len(orders) + 1))
    assert training.accepted() <= len(orders) <= training.accepted() + 1
    _nothing_is_lost_or_doubled(training)


def _stop(plane: Plane, where: str) -> psutil.Process:
    """SIGSTOP of the scheduler where others must wait for it until it ends; known, and not hoped for."""
    scheduler, path = psutil.Process(plane.pid("scheduler")), plane.folder.path / "control.sqlite"
    places = queue, lock, transaction = _places(path)

    def first_in_the_queue() -> bool:
        with path.with_name(f"{path.name}.lock").open("rb") as ours:
            fcntl.flock(ours, fcntl.LOCK_EX)
            first = wait_for(lambda: [pid for place, pid in _locks() if place == queue], 30)
            return first == [scheduler.pid] and _stopped(scheduler, places, has={queue})

    def in_a_transaction() -> bool:
        time.sleep(random.uniform(0, 0.02))
        return _stopped(scheduler, places, has={lock, transaction})

    right = in_a_transaction if where == "in a transaction" else first_in_the_queue
    # More often than `wait_for` looks.
    wait_for(lambda: any(right() for _ in range(10)), 120, lambda: f"{_locks()}")
    return scheduler


def _stopped(process: psutil.Process, places: Collection[Place], *, has: set[Place]) -> bool:
    """Stop it; where it has others of the places than these, let it go on."""
    process.suspend()
    wait_for(lambda: _threads(process.pid) == {"T"}, 20)
    if {place for place, pid in _locks() if pid == process.pid and place in places} == has:
        return True
    process.resume()
    return False


def _threads(pid: int) -> set[str]:
    """The states of its threads: one that was in the kernel goes on to the end of its call."""
    stats = (task / "stat" for task in Path(f"/proc/{pid}/task").iterdir())
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}


def _places(path: Path) -> tuple[Place, Place, Place]:
    """What a writer takes, one after the other: the place in the queue, the write lock, SQLite's write transaction."""

    def inode(suffix: str) -> str:
        return str(path.with_name(path.name + suffix).stat().st_ino)

    return ("FLOCK", inode(".queue"), "0"), ("FLOCK", inode(".lock"), "0"), ("POSIX", inode("-shm"), f"{WRITES}")


def _locks(*, waiting: bool = False) -> list[tuple[Place, int]]:
    """What is locked for writing, or waited for, and by which process; as the kernel tells."""
    found: list[tuple[Place, int]] = []
    for line in Path("/proc/locks").read_text().splitlines():
        _, *fields = line.split()
        if waiting == (fields[0] == "->"):
            kind, _, access, pid, where, start, _ = fields[1:] if waiting else fields
            if access == "WRITE":
                found.append(((kind, where.rpartition(":")[2], start), int(pid)))
    return found
