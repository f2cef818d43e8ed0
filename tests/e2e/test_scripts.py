"""Plain torchrun-style scripts: they run unchanged, fail clearly, restart warm."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from distroml.cli.plane.datafolder import DataFolder
from tests.e2e.conftest import REPOSITORY, Cli, Plane, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

JOBS = Path(__file__).parent / "jobs"
ALL_REDUCE = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.tensor([float(os.environ["RANK"]) + 1])
dist.all_reduce(value)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "sum", value.item(), "args", sys.argv[1:])
dist.destroy_process_group()
"""


def script(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_torchrun_script_runs_unchanged(plane: Plane, tmp_path: Path) -> None:
    script(tmp_path, ALL_REDUCE)
    done = plane.cli("run", "--workers", "3", "train.py", "--lr", "0.1", cwd=tmp_path)
    for rank in range(3):
        assert f"[{rank}] rank {rank} of 3 sum 6.0 args ['--lr', '0.1']" in done.stdout


def test_digits_reach_97_percent(plane: Plane) -> None:
    done = plane.cli("run", "--workers", "2", "examples/digits/train.py", cwd=REPOSITORY)
    assert "accuracy" in done.stdout


def test_a_script_that_raises_at_import_fails_with_its_text(plane: Plane, tmp_path: Path) -> None:
    script(tmp_path, "import no_such_module_here\n")
    done = plane.cli("run", "--workers", "2", "--max-failures", "1", "train.py", code=1, cwd=tmp_path)
    assert "No module named 'no_such_module_here'" in done.stderr
    job = plane.cli.json("jobs", "--all")[0]
    assert job["state"] == "JOB_STATE_FAILED"
    assert job["category"] == "FAILURE_CATEGORY_EXCEPTION"
    exits = [e for e in plane.cli.events(job["id"]) if e["type"].endswith("GenerationBroken")]
    assert len(exits) == 2, "one failure allowed: the first is forgiven, the second ends the job"


def test_a_script_that_ends_without_training_succeeds_and_says_so(plane: Plane, tmp_path: Path) -> None:
    asked = ("--compress", "int8", "--sync-every", "5")
    script(tmp_path, "import os\nprint('nothing to do, met every', os.environ['DISTROML_SYNC_EVERY'])\n")
    done = plane.cli("run", "--workers", "2", *asked, "train.py", cwd=tmp_path)
    for rank in range(2):
        assert f"[{rank}] nothing to do, met every 5" in done.stdout
    untrained = "ended with exit 0 and no step was seen"
    unused = "compression int8 with sync_every=5 was asked for and not used"
    assert f"note: {untrained}" in done.stderr
    assert f"warning: {unused}" in done.stderr
    job = plane.cli.json("jobs", "--all")[0]["id"]
    explained = plane.cli("job", "explain", job).stdout
    assert unused in explained
    assert untrained in explained
    told = plane.cli.json("job", "explain", job)
    assert untrained in told["note"]
    assert unused in told["warning"]

    held = [row for row in plane.cli.json("cost", "--by", "job", "--by", "day")["rows"] if row["job"] == job]
    assert held
    assert all(row["slot_hours"] > 0 and not row["money"] for row in held)
    rebuilt = [json.loads(line) for line in plane.cli("history", "rebuild", "--json").stdout.splitlines()]
    assert (rebuilt[-1]["done"], rebuilt[-1]["kept_in"]) == (True, "sqlite")
    again = plane.cli.json("cost", "--by", "job", "--by", "day")["rows"]
    assert [row for row in again if row["job"] == job] == held
    assert job in [row["id"] for row in plane.cli.json("jobs", "--finished")]


@pytest.mark.timeout(300)
def test_a_job_is_followed_steered_and_looked_at_afterwards(plane: Plane, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow = ("--name", "looked-at", "tiny.py", "200", "0.3", str(gate))
    valid = plane.cli("submit", "--dry-run", *slow, cwd=JOBS).stdout
    assert "the job is valid; it would be queued" in valid
    assert "looked-at" not in {row["spec"]["name"] for row in plane.cli.json("jobs", "--all")}

    job = plane.cli.submit(*slow, cwd=JOBS)
    following = {
        "events": plane.cli.start("events", job, "--follow", "--json"),
        "watch": plane.cli.start("job", "watch", job),
        "logs": plane.cli.start("job", "logs", job, "-f"),
    }
    assert plane.cli.json("job", "priority", job, "7")["spec"]["priority"] == 7

    def saves() -> int:
        return sum(event["type"] == "checkpoint.Committed" for event in plane.cli.events(job))

    wait_for(lambda: saves() >= 2, 120, lambda: plane.cli.explain(job))
    gate.touch()
    watched, _ = following["watch"].communicate(timeout=150)
    assert following["watch"].returncode == 0
    assert watched.splitlines()[0].startswith(("queued", "admitted", "running"))
    assert watched.splitlines()[-1].startswith("succeeded")
    told: dict[str, str] = {}
    for name, end in (("events", "scheduler.job.Succeeded"), ("logs", "finished at 200")):
        stream = following[name].stdout
        assert stream is not None
        # Whoever follows events is not told that there is nothing more; output ends with the job.
        told[name] = "".join(up_to(end, stream))
        if name == "events":
            following[name].send_signal(signal.SIGINT)
        following[name].communicate(timeout=60)
    assert following["logs"].returncode == 0
    assert "[0] finished at 200" in told["logs"]
    events = [json.loads(line) for line in told["events"].splitlines()]
    assert [e["type"] for e in events if e["type"] == "scheduler.job.PriorityChanged"]

    started = next(e["position"] for e in events if e["type"] == "scheduler.job.Started")
    then = {one["stream"]: one["state"] for one in plane.cli.json("replay", job, "--at", started)}
    assert then[f"scheduler/job/{job}"]["state"] == "running"
    # As `events` prints it, without the log's name.
    now = plane.cli("replay", job, "--at", events[-1]["position"].rpartition(":")[2]).stdout
    assert '"state": "succeeded"' in now

    def kept() -> list[int]:
        found = plane.cli.json("checkpoints", "list", job)
        return sorted(int(one["step"]) for one in found if one["state"] == "Committed")

    first, *others, newest = kept()
    assert f"checkpoint of step {first} deleted" in plane.cli("checkpoints", "delete", job, "--step", str(first)).stdout
    for step in others:
        assert plane.cli.json("checkpoints", "delete", job, "--step", str(step)) == {"deleted": step}
    assert kept() == [newest] == [200]


def up_to(end: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines up to the first that has `end` in it."""
    for line in lines:
        yield line
        if end in line:
            return


def test_a_missing_script_is_a_usage_error(plane: Plane, tmp_path: Path) -> None:
    done = plane.cli("run", "nope.py", code=2, cwd=tmp_path)
    assert "no script" in done.stderr


def test_more_workers_than_the_cluster_can_ever_give(plane: Plane, tmp_path: Path) -> None:
    script(tmp_path, "print(1)\n")
    done = plane.cli("run", "--workers", "64", "train.py", code=1, cwd=tmp_path)
    assert "ExceedsCapacity" in done.stderr
    assert "64" in done.stderr
    assert "4" in done.stderr


def test_a_killed_plain_worker_restarts_its_group_warm(plane: Plane, tmp_path: Path) -> None:
    script(
        tmp_path,
        "import os, pathlib, time, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "print('pid', os.getpid(), 'generation', os.environ['DISTROML_GENERATION'], flush=True)\n"
        "dist.barrier()\n"
        "time.sleep(600 if os.environ['DISTROML_GENERATION'] == '1' else 0)\n",
    )
    job = plane.cli.submit("--workers", "2", "train.py", cwd=tmp_path)

    def pids() -> list[int]:
        lines = plane.cli("job", "logs", job).stdout.splitlines()
        return [int(line.split()[2]) for line in lines if "pid" in line and "generation 1" in line]

    os.kill(wait_for(lambda: len(found := pids()) == 2 and found)[1], signal.SIGKILL)
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED"
    starts = [e["data"] for e in plane.cli.events(job) if e["type"].endswith("worker.Started")]
    again = [s for s in starts if int(s["generation"]) == 2]
    assert len(again) == 2
    assert {s["start"] for s in again} == {"warm"}


def test_one_worker_that_fails_takes_the_job_with_its_category(plane: Plane, tmp_path: Path) -> None:
    script(tmp_path, "import os, sys\nif os.environ['RANK'] == '1': sys.exit(7)\nimport time; time.sleep(600)\n")
    plane.cli("run", "--workers", "2", "--max-failures", "0", "train.py", code=1, cwd=tmp_path)
    job = plane.cli.json("jobs", "--all")[0]
    assert job["category"] == "FAILURE_CATEGORY_EXIT_CODE"
    assert "7" in job["message"]


def test_cancel_leaves_nothing_running(plane: Plane, tmp_path: Path) -> None:
    script(tmp_path, "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)\n")
    job = plane.cli.submit("--workers", "2", "train.py", cwd=tmp_path)

    def pids() -> list[int]:
        return [int(line.split()[2]) for line in plane.cli("job", "logs", job).stdout.splitlines() if "pid" in line]

    found = wait_for(lambda: len(found := pids()) == 2 and found)
    plane.cli("job", "cancel", job)
    assert plane.cli.wait_state(job, "CANCELLED") == "CANCELLED"
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found), 15)
    nodes = plane.cli.json("nodes")
    wait_for(
        lambda: all(not s["job"] for n in plane.cli.json("nodes") for s in n["slots"]), 15, lambda: json.dumps(nodes)
    )


def test_one_enormous_line_hurts_nobody(plane: Plane, tmp_path: Path) -> None:
    script(tmp_path, "import sys\nsys.stdout.write('x' * 100_000_000)\nprint()\nprint('after')\n")
    done = plane.cli("run", "train.py", cwd=tmp_path, timeout=150)
    assert "after" in done.stdout


def test_run_without_a_control_plane_starts_one_and_ends_it(tmp_path: Path) -> None:
    script(tmp_path, "import os\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n")
    cli = Cli(tmp_path / "data")
    done = cli("run", "--workers", "3", "train.py", cwd=tmp_path)
    assert all(f"[{rank}] rank {rank} of 3" in done.stdout for rank in range(3))
    assert not DataFolder(tmp_path / "data").is_locked()
    cli("jobs", code=3)
