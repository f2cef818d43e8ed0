"""Starts the ranks of a test: by mpirun for MPI, as processes otherwise."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[4]
# Root in a container is no danger to anyone; more ranks than cores are slow, and slow is fine.
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    text: str


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "DISTROML_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in free]
    for server in free:
        server.close()
    return ports


def launch(backend: str, ranks: int, argv: list[str], timeout_s: float = 100.0) -> Ended:
    """Run `python argv` as `ranks` ranks to their ends."""
    if backend == "mpi":
        command = [*MPIRUN, "-n", str(ranks), sys.executable, *argv]
        # The kernel's answer to a killed launcher: its ranks end with it.
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return Ended([process.returncode], process.stdout + process.stderr)
    (port,) = free_ports(1)
    processes = [
        subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env=_environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(ranks),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        texts = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return Ended([process.returncode for process in processes], "\n".join(texts))
