from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distroml.agent import launch
from distroml.agent.adapters.held import Held, read_exit
from distroml.agent.adapters.processes import Identity, read_identity
from distroml.agent.evidence import oom_evidence, oom_kills
from distroml.agent.launch import LaunchOrder
from distroml.agent.launcher import ProcessLauncher
from services.agent.tests.plane import until

Order = Callable[..., LaunchOrder]
SLEEP = ("-c", "import time; time.sleep(60)")


async def start(order: LaunchOrder) -> Held:
    return (await ProcessLauncher(None).start(order)).held


def record(order: LaunchOrder) -> dict[str, object]:
    return json.loads((Path(order["folder"]) / "exit.json").read_text())


@pytest.mark.parametrize(
    ("program", "code", "number"),
    [
        ("raise SystemExit(0)", 0, 0),
        ("raise SystemExit(7)", 7, 0),
        ("import os; os.kill(os.getpid(), 11)", 0, 11),
        ("import os; os.abort()", 0, 6),
    ],
)
async def test_the_exit_record_tells_how_it_ended(order: Order, program: str, code: int, number: int) -> None:
    wanted = order("-c", program)
    held = await start(wanted)
    ended = await asyncio.wait_for(held.ended, 20)
    assert (ended.code, ended.signal, ended.lost, ended.oom) == (code, number, False, "")
    written = record(wanted)
    assert written["worker"] == wanted["worker"]
    assert written["boot_id"] == launch.boot_id()
    assert float(str(written["user_s"])) + float(str(written["system_s"])) > 0, "a Python start costs some CPU"
    assert int(str(written["ended_at_ms"])) >= int(str(written["started_at_ms"]))


async def test_output_goes_to_the_folder_and_stops_at_the_cap(order: Order) -> None:
    program = "import os, sys; os.write(1, b'x' * 100_000_000); os.write(2, b'last words')"
    wanted = order("-c", program, log_cap_bytes=1_000_000)
    began = time.monotonic()
    held = await start(wanted)
    ended = await asyncio.wait_for(held.ended, 60)
    assert ended.code == 0
    folder = Path(wanted["folder"])
    assert (folder / "stdout").stat().st_size == 1_000_000
    assert (folder / "stderr").read_bytes() == b"last words"
    output = record(wanted)["output"]
    assert output == {
        "stdout": {"kept_bytes": 1_000_000, "dropped_bytes": 99_000_000},
        "stderr": {"kept_bytes": 10, "dropped_bytes": 0},
    }
    assert time.monotonic() - began < 50


async def test_a_full_disk_costs_output_and_not_the_worker(order: Order, tmp_path: Path) -> None:
    wanted = order("-c", "print('x' * 1000)")
    os.symlink("/dev/full", Path(wanted["folder"]) / "stdout")
    held = await start(wanted)
    assert (await asyncio.wait_for(held.ended, 20)).code == 0
    assert record(wanted)["output"]["stdout"] == {"kept_bytes": 0, "dropped_bytes": 1001}


async def test_what_the_worker_left_running_ends_with_it(order: Order, tmp_path: Path) -> None:
    program = """
import os, subprocess, sys
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
pids = [subprocess.Popen(sleeper).pid, subprocess.Popen(sleeper, start_new_session=True).pid]
open("pids", "w").write(" ".join(map(str, pids)))
os._exit(0)
"""
    wanted = order("-c", program)
    held = await start(wanted)
    await asyncio.wait_for(held.ended, 20)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert [launch.start_time(pid) for pid in pids] == [0, 0]


async def test_without_an_agent_the_worker_ends_after_the_grace(order: Order) -> None:
    wanted = order(*SLEEP, orphan_grace_s=1.0)
    held = await start(wanted)
    await asyncio.sleep(0.1)
    await held.let_go()
    await until(lambda: read_exit(Path(wanted["folder"])), 20)
    assert record(wanted)["category"] == "orphan"
    assert record(wanted)["signal"] == signal.SIGTERM


async def test_an_agent_s_heartbeats_keep_it_going(order: Order) -> None:
    wanted = order(*SLEEP, orphan_grace_s=1.5)
    held = await start(wanted)
    for _ in range(12):
        await asyncio.sleep(0.25)
        held.heartbeat()
    assert not held.ended.done()
    held.end(0, "stop: test")
    assert (await asyncio.wait_for(held.ended, 20)).ended_by == "stop: test"


async def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace(order: Order, tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); open('up', 'w'); time.sleep(60)"
    wanted = order("-c", program)
    held = await start(wanted)
    await until(lambda: (tmp_path / "up").exists())
    held.end(0.5, "stop: test")
    ended = await asyncio.wait_for(held.ended, 20)
    assert ended.signal == signal.SIGKILL
    assert record(wanted)["signals_sent"] == [signal.SIGTERM, signal.SIGKILL]


async def test_the_worker_dies_with_its_holder(order: Order) -> None:
    held = await start(order(*SLEEP))
    os.kill(held.identity.holder_pid, signal.SIGKILL)
    ended = await asyncio.wait_for(held.ended, 20)
    assert ended.lost
    await until(lambda: not held.identity.worker_lives)


async def test_sigkill_of_the_starter_leaves_holder_and_worker(order: Order) -> None:
    wanted = order("-c", "import sys; sys.stdin.read(); print('still here', flush=True); import time; time.sleep(60)")
    program = f"""
import asyncio, os, signal
from distroml.agent.launcher import ProcessLauncher
async def main():
    await ProcessLauncher(None).start({wanted!r})
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    starter = subprocess.Popen([sys.executable, "-c", program])
    await asyncio.to_thread(starter.wait)
    assert starter.returncode == -signal.SIGKILL
    identity = read_identity(Path(wanted["folder"]))
    assert identity is not None
    stdout = Path(wanted["folder"]) / "stdout"
    await until(lambda: stdout.exists() and stdout.read_bytes() == b"still here\n")
    assert identity.holder_lives
    assert identity.worker_lives
    held = Held(Path(wanted["folder"]), identity)
    held.end(0, "stop: test")
    assert (await asyncio.wait_for(held.ended, 20)).signal == signal.SIGKILL


async def test_a_recycled_process_id_is_not_the_holder(order: Order) -> None:
    held = await start(order(*SLEEP))
    fields = {name: getattr(held.identity, name) for name in Identity.__struct_fields__}
    assert held.identity.holder_lives
    assert not Identity(**{**fields, "holder_start": held.identity.holder_start + 1}).holder_lives
    assert not Identity(**{**fields, "boot_id": "another boot"}).holder_lives
    held.end(0, "stop: test")
    await asyncio.wait_for(held.ended, 20)
    await until(lambda: not held.identity.holder_lives)


async def test_garbage_on_the_holder_s_socket_ends_that_conversation_only(order: Order) -> None:
    wanted = order(*SLEEP)
    held = await start(wanted)
    folder = os.open(wanted["folder"], os.O_PATH)
    path = f"/proc/self/fd/{folder}/holder.sock"
    assert os.stat(path).st_mode & 0o777 == 0o600
    for garbage in (b"\x00\xff\n", b"[]\n", b'{"op": "nonsense"}\n', b"x" * 200_000, b'{"op": "kill"}\n'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(path)
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(100) == b""
            except ConnectionError:
                pass
    os.close(folder)
    assert held.identity.worker_lives
    held.end(0, "stop: test")
    await asyncio.wait_for(held.ended, 20)


async def test_a_folder_that_does_not_exist_is_said(order: Order) -> None:
    wanted = order("-c", "pass", cwd="/no/such/folder")
    held = await start(wanted)
    assert (await asyncio.wait_for(held.ended, 20)).code == launch.EXIT_CANNOT_START
    assert "cannot enter the working folder /no/such/folder" in (Path(wanted["folder"]) / "stderr").read_text()


async def test_the_holder_is_small(order: Order) -> None:
    held = await start(order(*SLEEP))
    status = Path(f"/proc/{held.identity.holder_pid}/status")
    await until(lambda: b"holder.py" in Path(f"/proc/{held.identity.holder_pid}/cmdline").read_bytes())
    rss_kb = int(status.read_text().split("VmRSS:")[1].split()[0])
    modules = Path(f"/proc/{held.identity.holder_pid}/maps").read_text()
    held.end(0, "stop: test")
    await asyncio.wait_for(held.ended, 20)
    assert rss_kb < 16_000
    assert "torch" not in modules
    assert "grpc" not in modules


@pytest.mark.parametrize(
    ("groups", "file", "text", "kills"),
    [
        ("0::/a/b\n", "a/b/memory.events", "low 0\nmax 4\noom 3\noom_kill 2\n", 2),
        ("5:cpu,memory:/x\n0::/\n", "memory/x/memory.oom_control", "under_oom 0\noom_kill 5\n", 5),
        ("5:cpu:/x\n", "memory/x/memory.oom_control", "oom_kill 5\n", -1),
        ("0::/a\n", "a/memory.events", "low 0\n", -1),
        ("0::/gone\n", "a/memory.events", "oom_kill 1\n", -1),
        ("nonsense\n", "a/memory.events", "oom_kill 1\n", -1),
    ],
    ids=["second version", "first version", "no memory group", "no counter", "no such group", "nonsense"],
)
def test_kills_for_want_of_memory_are_read_from_the_control_group(
    tmp_path: Path, groups: str, file: str, text: str, kills: int
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "tree" / file).parent.mkdir(parents=True)
    (tmp_path / "tree" / file).write_text(text)
    assert oom_kills(str(tmp_path / "cgroup"), str(tmp_path / "tree")) == kills


def test_a_kill_is_for_want_of_memory_only_where_the_kernel_counted_one() -> None:
    assert oom_evidence(1, 3, 4) == "memory oom_kill counter went from 3 to 4"
    assert oom_evidence(1, 3, 3) == ""
    assert oom_evidence(1, -1, 4) == "", "nobody knows what was before"
