"""How many cores are ours, by files as Linux has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distroml.workerlink import cores

GROUP = "system.slice/agent.service"


def machine(root: Path, told: str | None, quotas: dict[str, str]) -> Path:
    """A root with what `/proc/self/cgroup` says and `cpu.max` of some groups."""
    if told is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(told)
    for group, text in quotas.items():
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text)
    return root


@pytest.mark.parametrize(
    ("told", "quotas", "expected"),
    [
        pytest.param(f"0::/{GROUP}\n", {GROUP: "200000 100000\n"}, 2, id="its own"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "150000 100000\n"}, 2, id="rounded up"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "1000 100000\n"}, 1, id="at least one"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "0 100000\n"}, 1, id="none is one"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "3200000 100000\n"}, 8, id="more than it may run on"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "max 100000\n"}, 8, id="no quota"),
        pytest.param(
            f"0::/{GROUP}\n", {GROUP: "max 100000\n", "system.slice": "300000 100000\n"}, 3, id="of a group around it"
        ),
        pytest.param("0::/\n", {"": "400000 100000\n"}, 4, id="a container's is the mount"),
        pytest.param("0::/docker/1f\n", {"": "400000 100000\n"}, 4, id="a container that knows its host's names"),
        pytest.param("0::/../other\n", {"": "400000 100000\n", "../other": "100000 100000\n"}, 4, id="from outside"),
        pytest.param("4:cpu:/a\n0::/\n", {"a": "100000 100000\n"}, 8, id="v1 beside it"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "many\n"}, 8, id="no numbers"),
        pytest.param(f"0::/{GROUP}\n", {GROUP: "100000 0\n"}, 8, id="no period"),
        pytest.param("4:cpu:/a\n", {}, 8, id="no v2"),
        pytest.param(None, {}, 8, id="no such files"),
    ],
)
def test_cores_within_the_quotas(tmp_path: Path, told: str | None, quotas: dict[str, str], expected: int) -> None:
    assert cores.within_quota(8, machine(tmp_path, told, quotas)) == expected


def test_cores_that_this_process_may_not_run_on_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cores, "within_quota", lambda allowed: allowed - 1)
    assert cores.usable_cores() == 2
