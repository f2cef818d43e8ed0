"""A node of two slots beside a control plane on this machine, whose lines leave for whoever it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from distroml.cli.plane.datafolder import SERVICES, DataFolder, Endpoints

SLOTS = 2
_END_S = 30.0


class Node:
    """Its agent; `metrics` is where that tells its metrics."""

    def __init__(self, plane: DataFolder, endpoints: Endpoints, folder: Path, environ: Mapping[str, str]) -> None:
        """`environ` has what else the agent is told; that beats what the plane says of itself."""
        self.folder = folder
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.metrics = f"127.0.0.1:{port}"
        told = {
            "DISTROML_DATA": str(folder),
            "DISTROML_TOKEN_FILE": str(plane.token_file),
            "DISTROML_DEPLOYMENT": plane.deployment(),
            "DISTROML_OBJECTS": (plane.path / "objects").as_uri(),
            "DISTROML_METRICS_LISTEN": self.metrics,
            "DISTROML_AGENT_SLOTS": str(SLOTS),
            **{f"DISTROML_{name.upper()}": endpoints.services[name] for name in SERVICES},
        }
        with (plane.logs / f"{folder.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distroml.agent"],
                env={**os.environ, **told, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._answers(port, plane.logs / f"{folder.name}.log")
        except BaseException:
            self.close()
            raise

    def _answers(self, port: int, log: Path) -> None:
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"the agent does not tell its metrics: {log} says why")

    def close(self) -> None:
        """End it and its workers."""
        down = self.folder / "node" / "down"
        down.parent.mkdir(exist_ok=True)
        down.touch()
        self.process.terminate()
        try:
            self.process.wait(_END_S)
        finally:
            self.process.kill()
            self.process.wait()
