"""A standing set of rank processes on one or more hosts that answer one JSON task after the other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from links.namespaces import Host

_START_S = 300.0


class TaskFailed(RuntimeError):
    """A rank could not do its task; the message is its own."""


class Workers:
    """`world_size` processes of `script`, ranks dealt out to the hosts in blocks; `ask` gives all the same task.

    Without hosts all run here, on loopback.
    """

    def __init__(self, script: Path, world_size: int, hosts: Sequence[Host] = ()) -> None:
        address = hosts[0].address if hosts else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._answers: list[Queue[str]] = []
        self._processes: list[subprocess.Popen[str]] = []
        per_host = world_size // max(1, len(hosts))
        for rank in range(world_size):
            host = hosts[rank // per_host] if hosts else None
            environ = host.environment() if host else dict(os.environ)
            environ |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank % per_host),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "HOSTS": ",".join(one.name for one in hosts),
            }
            if host is not None:
                # So that a probe tells links between hosts from those within one.
                environ["DISTROML_HOST"] = host.name
            words = [sys.executable, str(script)]
            process = subprocess.Popen(
                host.command(words) if host else words,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            answers: Queue[str] = Queue()
            threading.Thread(target=_drain, args=(process, answers), daemon=True).start()
            self._processes.append(process)
            self._answers.append(answers)

    def ask(self, task: dict[str, Any], timeout_s: float) -> list[Any]:
        """Every rank's answer to `task`, by rank.

        Raises:
            TaskFailed: a rank said why it cannot, ended, or did not answer in time.
        """
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
        found: list[Any] = []
        for rank, answers in enumerate(self._answers):
            try:
                line = answers.get(timeout=timeout_s)
            except Empty:
                raise TaskFailed(f"rank {rank} did not answer {task.get('do')!r} within {timeout_s:.0f} s") from None
            if not line:
                raise TaskFailed(f"rank {rank} ended while it should do {task.get('do')!r}")
            found.append(json.loads(line))
        for rank, answer in enumerate(found):
            if isinstance(answer, dict) and "error" in answer:
                raise TaskFailed(f"rank {rank}: {answer['error']}")
        return found

    def close(self) -> None:
        """End all of them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(10)


def _drain(process: subprocess.Popen[str], answers: Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") or line.startswith("["):
            answers.put(line)
    answers.put("")


@contextlib.contextmanager
def workers(script: Path, world_size: int, hosts: Sequence[Host] = ()) -> Iterator[Workers]:
    """`Workers` that are ready, and ended at the end."""
    made = Workers(script, world_size, hosts)
    try:
        made.ask({"do": "ready"}, _START_S)
        yield made
    finally:
        made.close()
