"""Warm workers are like fresh ones, only faster. One template for the whole module: its import takes seconds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distroml.agent.adapters.templates import Template, Templates
from distroml.agent.domain.warmth import key_of
from distroml.agent.launch import LaunchOrder
from distroml.agent.launcher import ProcessLauncher
from services.agent.tests.plane import until

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
Order = Callable[..., LaunchOrder]

SCRIPT = """
import atexit, os, sys, threading
import helper
class Payload: pass
atexit.register(lambda: print("at exit", __name__, Payload.__module__, getattr(sys, "last_type", None)))
print(sys.argv, __name__, __file__, __spec__ and __spec__.name, helper.VALUE, sys.path[0])
print(os.environ.get("MINE"), "ONLY_AGENT" in os.environ, os.getcwd(), sys.stdin.read() == "")
threading.Thread(target=lambda: print("from a thread")).start()
def deep(): raise KeyError("deep down")
if "raise" in sys.argv: deep()
if "exit" in sys.argv: sys.exit("a message")
if "five" in sys.argv: raise SystemExit(5)
"""


async def run(launcher: ProcessLauncher, order: LaunchOrder) -> tuple[str, int, str, str]:
    launched = await launcher.start(order)
    ended = await asyncio.wait_for(launched.held.ended, 60)
    folder = Path(order["folder"])
    return launched.start, ended.code or -ended.signal, (folder / "stdout").read_text(), (folder / "stderr").read_text()


@pytest.mark.timeout(300)
async def test_a_forked_worker_is_like_a_fresh_one(order: Order, tmp_path: Path) -> None:
    templates = Templates(tmp_path, wait_s=90)
    key = key_of(sys.executable, os.getuid(), ENV)
    templates.keep(key, {**ENV, "ONLY_AGENT": "1"}, default=True)
    warm, cold = ProcessLauncher(templates), ProcessLauncher(None)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/script.py").write_text(SCRIPT)
    (tmp_path / "code/helper.py").write_text("VALUE = 42")
    (tmp_path / "code/broken.py").write_text("x = (")
    try:
        for argv in (
            ["script.py", "a"],
            ["script.py", "raise"],
            ["script.py", "exit"],
            ["script.py", "five"],
            ["-m", "script", "a"],
            ["-m", "helper_that_is_missing"],
            ["missing.py"],
            ["broken.py"],
            ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"],
            ["-c", "import sys; sys.stderr.write('x'); print(sys.argv)", "y"],
        ):
            facts = {"env": {**ENV, "MINE": "1"}, "cwd": str(tmp_path / "code")}
            if argv[0] == "-m":
                # A module's run leaves its folder's cache behind: alike for both only from the second run on.
                await run(cold, order(*argv, **facts))
            start, *warm_end = await run(warm, order(*argv, **facts))
            assert start == "warm"
            start, *cold_end = await run(cold, order(*argv, **facts))
            assert start == "cold"
            assert _alike(warm_end) == _alike(cold_end), argv
        await _forks_share_nothing_they_should_not(warm, order)
        await _speed_and_threads(warm, order, templates)
        await _another_environment_starts_cold_and_says_why(warm, order)
        await _dead_template_is_replaced(warm, order, templates._templates[key])
    finally:
        await warm.close()


def _alike(end: list[object]) -> list[object]:
    # 3.11's own traceback marks differ in nothing but the interpreter's frames, which a program run by path has not.
    return [str(part).replace("<frozen runpy>", "") for part in end]


async def _forks_share_nothing_they_should_not(warm: ProcessLauncher, order: Order) -> None:
    program = (
        "import os, random, numpy, signal, torch\n"
        "print(random.random(), numpy.random.rand())\n"
        "fds = sorted(os.listdir('/proc/self/fd'))\n"
        "print(fds[:4], signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, torch.cuda.is_initialized())\n"
        "print(os.getsid(0) == os.getpid(), os.getpriority(os.PRIO_PROCESS, 0))"
    )
    lines = [(await run(warm, order("-c", program, env=ENV)))[2].splitlines() for _ in range(2)]
    assert lines[0][0] != lines[1][0]
    for first in lines:
        # The fourth is the listing's own.
        assert first[1] == "['0', '1', '2', '3'] True False"
        assert first[2] == f"True {os.getpriority(os.PRIO_PROCESS, 0)}"


async def _speed_and_threads(warm: ProcessLauncher, order: Order, templates: Templates) -> None:
    template = next(iter(templates._templates.values()))
    assert len(os.listdir(f"/proc/{template.pid}/task")) == 1
    seconds: list[float] = []
    for _ in range(5):
        began = time.time()
        program = "import time, torch, torch.optim; print(time.time())"
        _, code, out, _ = await run(warm, order("-c", program, env=ENV))
        assert code == 0
        seconds.append(float(out) - began)
    print(json.dumps({"warm_start_s": [round(s, 3) for s in seconds]}))
    assert statistics.median(seconds) < 1.0


async def _another_environment_starts_cold_and_says_why(warm: ProcessLauncher, order: Order) -> None:
    launched = await warm.start(order("-c", "pass", env={**ENV, "OMP_NUM_THREADS": "7"}))
    await launched.held.ended
    assert launched.start == "cold"
    assert launched.why_cold == "no warm process with OMP_NUM_THREADS=7"


async def _dead_template_is_replaced(warm: ProcessLauncher, order: Order, template: Template) -> None:
    pid = template.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: template.pid != pid, 90)
    start, code, _, _ = await run(warm, order("-c", "pass", env=ENV))
    assert (start, code) == ("warm", 0)


@pytest.mark.parametrize("answer", ["garbage", "silence"])
async def test_a_template_that_fails_falls_back_to_a_cold_start(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    bad = tmp_path / "bad.py"
    say = "print('{', flush=True)" if answer == "garbage" else "pass"
    bad.write_text(f"""
import sys, time
print('{{"op": "ready", "seconds": 0, "missing": [], "threads": 1}}', flush=True)
sys.stdin.buffer.read(1)
{say}
time.sleep(60)
""")
    monkeypatch.setattr("distroml.agent.template.__file__", str(bad))
    monkeypatch.setattr("distroml.agent.adapters.templates._FORK_S", 1.0)
    templates = Templates(tmp_path)
    templates.keep(key_of(sys.executable, os.getuid(), ENV), ENV, default=True)
    launcher = ProcessLauncher(templates)
    try:
        launched = await launcher.start(order("-c", "pass", env=ENV))
        assert launched.start == "cold"
        assert "did not answer" in launched.why_cold
        assert (await asyncio.wait_for(launched.held.ended, 20)).code == 0
    finally:
        await launcher.close()
