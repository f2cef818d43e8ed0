"""What a run of faults did to whom, and what came of it: kept as JSON while it goes on, told in a few lines at its end.

`SOAK_RECORD` names the file, and without it none is written. It is written anew after each fault and each test, so that
a run that was cut short has told what it did until then.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PASSED = "passed"
_BEGUN = "begun"
_WHY_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One job, from the first fault until the last one that it trained through."""

    steps: int = 0
    """Steps that its slowest rank made."""
    lost: int = 0
    """Optimizer steps that were made a second time, or never."""
    checkpoint: int = 0
    """The step of its last committed checkpoint."""
    orders: int = 0
    """Orders that were accepted meanwhile."""
    longest_s: float = 0.0
    """The longest time between two steps of a rank, with whatever befell it."""
    usual_s: float = 0.0
    """The same before anything did."""


def _counters() -> dict[str, Counter[str]]:
    return defaultdict(Counter)


@dataclass
class Record:
    """Faults by kind and by whom they befell, jobs that trained through them, checks, and outcomes of tests."""

    path: Path | None = None
    run: dict[str, Any] = field(default_factory=dict[str, Any])
    """Which code ran where, on which servers, with which seed."""
    faults: dict[str, Counter[str]] = field(default_factory=_counters)
    jobs: dict[str, Trained] = field(default_factory=dict[str, Trained])
    checks: dict[str, int] = field(default_factory=dict[str, int])
    """What was compared in the end, and how much of it there was."""
    tests: dict[str, str] = field(default_factory=dict[str, str])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """What those that did not pass said."""
    began: float = field(default_factory=time.monotonic)

    def befell(self, kind: str, *whom: str) -> None:
        """Each of them once."""
        self.faults[kind].update(whom)
        self.keep()

    def trained(self, job: str, now: Trained) -> None:
        """What is known of a job by now; of its longest times the longest one."""
        before = self.jobs.get(job, now)
        self.jobs[job] = replace(now, longest_s=max(before.longest_s, now.longest_s))
        self.keep()

    def checked(self, what: str, count: int) -> None:
        """So many were looked at, and found right."""
        self.checks[what] = count
        self.keep()

    def tested(self, name: str, when: str, outcome: str, why: str = "") -> None:
        """A test's set-up, its call or its tear-down ended so; whichever did not pass tells, the first one why."""
        if outcome != PASSED:
            self.tests[name] = outcome
            self.failures.setdefault(name, why[:_WHY_CHARS])
        elif when != "teardown":
            self.tests[name] = PASSED if when == "call" else _BEGUN
        self.keep()

    def keep(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.write_text(json.dumps(self.as_json(), indent=1))
        fresh.replace(self.path)

    @property
    def passed(self) -> bool:
        """Whether tests were made, and all of them passed."""
        return set(self.tests.values()) == {PASSED}

    def as_json(self) -> dict[str, Any]:
        """All of it, with sums."""
        return {
            "run": self.run,
            "seconds": round(time.monotonic() - self.began, 1),
            "passed": self.passed,
            "faults": _all(self.faults),
            "befell": {kind: dict(sorted(of.items())) for kind, of in self.faults.items()},
            "jobs": {job: asdict(one) for job, one in self.jobs.items()},
            "checks": self.checks,
            "tests": self.tests,
            "failures": self.failures,
        }

    def lines(self) -> Sequence[str]:
        """The same for people."""
        seconds = time.monotonic() - self.began
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in Counter(self.tests.values()).items())
        run = "".join(f", {name} {self.run[name]}" for name in ("seed", "code") if self.run.get(name) is not None)
        kinds = (f"{kind} {of.total()} ({_each(of)})" for kind, of in self.faults.items())
        return [
            f"{seconds:.0f} s{run}; tests: {outcomes}",
            f"faults: {_all(self.faults)}",
            *(f"  {kind}" for kind in kinds),
            *(
                f"{job}: {one.steps} steps, {one.lost} lost; checkpoint of step {one.checkpoint}; {one.orders} orders; "
                f"longest time between two steps {one.longest_s:.2f} s ({one.usual_s:.2f} s before any fault)"
                for job, one in self.jobs.items()
            ),
            *(f"checked: {count} {what}" for what, count in self.checks.items()),
            *(f"{outcome}: {name}" for name, outcome in self.tests.items() if outcome != PASSED),
            f"kept in {self.path}",
        ]


def open_record(environ: Mapping[str, str]) -> Record:
    """The record that the environment asks for; one that is kept nowhere where it asks for none."""
    if not environ.get("SOAK_RECORD"):
        return Record()
    return Record(
        Path(environ["SOAK_RECORD"]).absolute(),
        {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": _code(),
            "kills_s": float(environ.get("SOAK_S") or 0),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
    )


def _code() -> str:
    """The commit, marked where files differ from it; empty outside of a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _all(faults: Mapping[str, Counter[str]]) -> int:
    return sum(of.total() for of in faults.values())


def _each(of: Counter[str]) -> str:
    return ", ".join(f"{whom} {count}" for whom, count in sorted(of.items()))
