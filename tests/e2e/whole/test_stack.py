"""Another deployment beside the demo, on the same servers: finished jobs leave etcd, and what is wrong is said.

Faults: tests/robustness.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from distroml.cli.client import STREAM_OWNERS
from distroml.statestore.etcd import EtcdClient, EtcdSettings
from tests.e2e.conftest import Cli, wait_for
from tests.e2e.whole.conftest import JOBS, OnStack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def keys(plane: OnStack) -> list[str]:
    """Every key that the deployment has in etcd, but for leases of roles and nodes."""

    async def read() -> list[str]:
        client = EtcdClient(EtcdSettings(endpoints=tuple(os.environ["DISTROML_ETCD_ENDPOINTS"].split(","))))
        try:
            found, _ = await client.range_all(f"{plane.folder.deployment()}/".encode(), keys_only=True)
        finally:
            await client.close()
        return [key for kv in found if "/leases/" not in (key := kv.key.decode())]

    return asyncio.run(read())


def test_a_finished_job_leaves_etcd_and_answers_everybody_as_before(plane: OnStack) -> None:
    cli = plane.cli
    before = set(keys(plane))
    submission = ("--name", "leaving", "--workers", "2", "--request-id", "leaving-once", "tiny.py", "20")
    job = cli.submit(*submission, cwd=JOBS)
    cli.wait_state(job, "SUCCEEDED", timeout=180)

    def left() -> list[str]:
        """What is there now, without answers to commands, which leases end, and commits that the relay is to take."""
        return [key for key in keys(plane) if key not in before and "/command/" not in key and "/outbox/" not in key]

    def all_gone() -> bool:
        return not [key for key in left() if job in key]

    wait_for(all_gone, 90, lambda: "\n".join(left()) + cli.explain(job))
    # Beside it only what there is one of per deployment or per node came into being.
    assert not [key for key in left() if "/job/" in key or "fences/" in key], left()

    assert plane.ask("job", "show", job)["state"] == "JOB_STATE_SUCCEEDED"
    wait_for(lambda: job in {one["id"] for one in plane.ask("jobs", "--all")})
    assert plane.ask("job", "show", "leaving")["id"] == job
    assert plane.ask("job", "explain", job)["job"]["id"] == job
    assert {event["type"].partition(".")[0] for event in cli.events(job)} == set(STREAM_OWNERS)
    assert "finished at 20" in plane.told("job", "logs", job)
    assert [row["job"] for row in plane.ask("cost", "--job", job)["rows"]] == [job]
    verified = plane.ask("replay", job, "--verify")
    assert {one["stream"] for one in verified} == {f"{owner}/job/{job}" for owner in STREAM_OWNERS}
    assert cli.submit(*submission, cwd=JOBS) == job
    assert "cannot be cancelled" in cli("job", "cancel", job, code=1).stderr
    assert [one["state"] for one in plane.ask("checkpoints", "list", job)] == ["Committed", "Committed"]
    wait_for(all_gone, 90, lambda: "\n".join(left()))
    # What was verified is told by an event: the catalogue lives again, and leaves again.
    assert "sound" in plane.told("checkpoints", "verify", job)
    wait_for(all_gone, 90, lambda: "\n".join(left()))
    assert "history is new" in plane.told("history", "rebuild")
    assert plane.ask("jobs", "--all")[0]["id"] == job


def test_doctor_and_up_say_what_is_wrong(plane: OnStack, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was made with the profile stack" in plane.cli("up", "--profile", "embedded", code=2).stderr
    monkeypatch.setenv("DISTROML_NATS_PASSWORD", "wrong")
    found = {f["check"]: f["verdict"] for f in plane.cli.json("doctor", code=1)}
    assert (found["etcd"], found["nats"], found["objects"], found["relay"]) == ("ok", "problem", "ok", "ok")
    stranger = Cli(plane.folder.path.with_name("stranger"))
    refused = stranger("up", "--profile", "stack", code=1).stderr
    assert "nats:" in refused
    assert "make stack" in refused
    assert "wrong" not in refused
