"""Runs a command in the environment of the developer's stack: `python -m tilt.inside [--again] COMMAND...`.

The Tiltfile says where services, servers and data are; here the deployment's id, its place among the objects of others
and its token are added, which the data folder knows.

    --again          start the command again when it ends by itself, as a service's supervisor does
    --prepare        only make the data folder, with a deployment's id and a token
    --login          only print the dashboard's address with the token that opens it
    --targets A B    only tell Prometheus whom to scrape
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.cli.plane.profile import environment_of

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("DISTROML_TILT_HOME") or ROOT)
"""Below it are the servers' data and the deployment's own folder, as the Tiltfile has it."""
STACK = HOME / ".distroml" / "stack"
_AGAIN_S = 1.0


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module's text."""
    os.chdir(ROOT)
    match list(arguments):
        case ["--prepare"]:
            print(f"{folder().path}: {folder().prepare(Profile.STACK)}")
        case ["--login"]:
            print(f"{os.environ['DISTROML_DASHBOARD']}/login?token={folder().token()}")
        case ["--targets", *addresses]:
            file = STACK / "prometheus" / "targets" / "distroml.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([{"targets": addresses}]))
        case ["--again", *command]:
            return again(command, environment())
        case command:
            os.execvpe(command[0], command, environment())
    return 0


def folder() -> DataFolder:
    """The data folder that the environment names."""
    return DataFolder(Path(os.environ["DISTROML_DATA"]).absolute())


def environment() -> dict[str, str]:
    """Of services and commands: as the Tiltfile has it, and this deployment's own."""
    here = folder()
    return {
        **environment_of(here),
        "DISTROML_DATA": str(here.path),
        "DISTROML_TOKEN_FILE": str(here.token_file),
        "DISTROML_DEPLOYMENT": here.deployment(),
    }


def again(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Keep the command running until SIGTERM or SIGINT, which it gets, too; returns 0 when it has ended then."""
    told = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def tell(number: int, _: object) -> None:
        told.set()
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    while not told.is_set():
        process = subprocess.Popen(command, env=dict(environ))
        running[:] = [process]
        if told.is_set():
            # It was told before there was one to tell.
            process.terminate()
        code = process.wait()
        if not told.is_set():
            print(f"ended with status {code}; starting it again", flush=True)
            told.wait(_AGAIN_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
