"""The checks of a GPU, as far as a machine without one can tell: what they refuse, what becomes of their findings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import lab as labs
from tools.gpu_check.checks import CHECKS
from tools.gpu_check.lab import Failed, Lab, Refused


def torch_of(cuda: str | None, *, sees: bool = False) -> Any:
    return SimpleNamespace(
        __version__="2.15.0", version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(is_available=lambda: sees)
    )


@pytest.mark.parametrize(
    ("torch", "why"),
    [
        (torch_of(None), "torch 2.15.0 is built without CUDA: install torch for CUDA"),
        (torch_of("13.0"), "is built for CUDA 13.0 and finds none: `nvidia-smi` says what the driver sees"),
    ],
)
def test_without_a_gpu_it_refuses_and_says_why_and_what_to_do(torch: Any, why: str) -> None:
    with pytest.raises(Refused, match=r"^there is no GPU to check: .*`--on-cpu` rehearses") as refused:
        gpu_check.look_for_gpu("cuda", torch)
    assert why in str(refused.value)
    gpu_check.look_for_gpu("cpu", torch)
    gpu_check.look_for_gpu("cuda", torch_of("13.0", sees=True))


def test_packages_that_are_missing_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert labs.missing() == []
    for module in ("torch", "grpc_status"):
        monkeypatch.delitem(labs.NEEDED, module)
    monkeypatch.setitem(labs.NEEDED, "no_such_module", "no-such")
    monkeypatch.setitem(labs.NEEDED, "no_such.inner", "no-such-inner")
    with pytest.raises(Refused, match="lacks no-such, no-such-inner: install them"):
        gpu_check.refuse_without_packages("cpu")


def test_one_that_fails_leaves_the_others_their_turn_and_all_findings_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(lab: Lab) -> dict[str, Any]:
        return {"left": lab.left_s > 0}

    def bad(lab: Lab) -> dict[str, Any]:
        raise Failed("losses are far off")

    def broken(lab: Lab) -> dict[str, Any]:
        raise KeyError("category")

    def slots(lab: Lab) -> dict[str, Any]:
        raise Failed("no slot")

    out = tmp_path / "found.json"
    found = gpu_check.run(Lab("cpu", tmp_path, 60), (bad, broken, good, slots, good), out)
    assert [(one["check"], one["ok"]) for one in found] == [
        ("bad", False), ("broken", False), ("good", True), ("slots", False),
    ]  # fmt: skip
    assert json.loads(out.read_text()) == found
    assert "KeyError: 'category'" in found[1]["why"]
    assert "FAIL bad: losses are far off\n" in capsys.readouterr().out

    late = gpu_check.run(Lab("cpu", tmp_path, 0), (good,), None)
    assert "were over before this one" in late[0]["why"]


def test_ranks_that_wait_for_one_another_are_all_heard_whatever_they_say(tmp_path: Path) -> None:
    """A pipe holds 64 KiB: rank 1 says more than that before rank 0, which waits for it, comes to its end."""
    program = """
import os, pathlib, sys, time
done = pathlib.Path(sys.argv[1])
if os.environ["RANK"] == "1":
    print("x" * 1_000_000)
    done.touch()
while not done.exists():
    time.sleep(0.01)
print("end", flush=True)
"""
    lab = Lab("cpu", tmp_path, 30.0)
    (first, short), (second, long) = lab.ranks(2, "-c", program, str(tmp_path / "done"))
    assert (first, short) == (0, "end\n")
    assert (second, len(long)) == (0, 1_000_000 + len("\nend\n"))


def test_whoever_submits_jobs_has_a_control_plane_first() -> None:
    def names(*asked: str) -> list[str]:
        return [check.__name__ for check in gpu_check.with_what_they_need(asked)]

    assert names("speed", "machine") == ["machine", "speed"]
    assert names("memory") == ["slots", "memory"]
    assert names(*(check.__name__ for check in CHECKS)) == [check.__name__ for check in CHECKS]


def test_a_check_that_does_not_exist_is_refused_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["trainning"])
    assert ended.value.code == 2
    there = ", ".join(check.__name__ for check in CHECKS)
    assert f"no check trainning; there are {there}" in capsys.readouterr().err
