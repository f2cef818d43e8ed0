"""One recovery under `torchrun --max-restarts`, watched from outside: `recovery_s`.

torchrun runs as a careful user runs it. In torch 2.15 the workers' store is torchrun's own and lives as long as it
does, and its keys carry no number of the attempt: restarted ranks read the dead round's Gloo addresses, "Connection
refused", and use up restarts or hang (https://github.com/pytorch/pytorch/issues/135712). That issue's remedy,
`TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`, gives each attempt a store of its own and is set here; `shared_store=True`
leaves it away and shows what happens then.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SCRIPT = Path(__file__).with_name("torchrun_gpt.py")
# torchrun gives its workers 30 s to end by SIGTERM.
STOP_S = 40.0
START_S = 180.0


def recovery_s(
    config: Path, rank: int, *, every: int, warm_steps: int, limit_s: float, shared_store: bool = False
) -> float | None:
    """Seconds from SIGKILL of `rank` to the end of the next attempt's first step; None where none came in `limit_s`.

    Raises:
        RuntimeError: the first attempt never trained, or the next one did not resume from the checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="torchrun-") as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
            *(str(SCRIPT), str(config), f"{folder}/state.pt", str(every)),
        ]
        store = "0" if shared_store else "1"
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": store}
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        pids: dict[int, int] = {}
        everyone: list[int] = []
        try:
            killed, saved = _kill(process, rank, pids, everyone, warm_steps)
            return _recovered(process, everyone, killed, saved, limit_s)
        finally:
            _end(process, everyone)


def _kill(
    process: subprocess.Popen[str], rank: int, pids: dict[int, int], everyone: list[int], warm_steps: int
) -> tuple[float, int]:
    """Kill `rank` once it trained and saved: when, and the last step saved by then."""
    saved = 0
    for words in _lines(process, START_S):
        match words:
            case ["PID", number, pid]:
                pids[int(number)] = int(pid)
                everyone.append(int(pid))
            case ["SAVED", step]:
                saved = int(step)
            case ["STEP", step, _] if saved and int(step) >= warm_steps:
                killed = time.time()
                os.kill(pids[rank], signal.SIGKILL)
                return killed, saved
            case _:
                pass
    raise RuntimeError("torchrun's first attempt did not train")


def _recovered(
    process: subprocess.Popen[str], everyone: list[int], killed: float, saved: int, limit_s: float
) -> float | None:
    again: set[int] = set()
    for words in _lines(process, limit_s):
        match words:
            case ["PID", number, pid]:
                again.add(int(number))
                everyone.append(int(pid))
            case ["SAVED", step] if len(again) < 2:
                saved = int(step)  # between the choice to kill and the death
            case ["STEP", step, at] if len(again) == 2:
                if int(step) != saved + 1:
                    raise RuntimeError(f"torchrun went on at step {step} after a checkpoint of step {saved}")
                return float(at) - killed
            case _:
                pass
    return None


# One reader per process: a pipe that some worker keeps open must not hold up the measurement.
_readers: dict[int, queue.Queue[str | None]] = {}


def _lines(process: subprocess.Popen[str], limit_s: float) -> Iterator[list[str]]:
    """The words of each line until the output ends or the time is over."""
    lines = _readers.get(process.pid)
    if lines is None:
        lines = _readers[process.pid] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    deadline = time.monotonic() + limit_s
    with contextlib.suppress(queue.Empty):
        while (line := lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            yield line.split()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str], everyone: list[int]) -> None:
    """End torchrun, and what it left: its workers are in sessions of their own."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    process.kill()
    process.wait()
    for pid in everyone:
        with contextlib.suppress(OSError):
            if str(SCRIPT).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
    _readers.pop(process.pid, None)
