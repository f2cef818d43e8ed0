"""Runs the mpirun of one generation, whose ranks are seats: each leaves what MPI gave it, for a worker to take.

Standard library only, run by file path by the job's interpreter. MPI takes whoever comes with a rank's variables for
that rank, so the worker itself is started and held like every other one, and mpirun stays a service beside it.

    mpihost.py run COUNT    become mpirun, with COUNT seats; each writes `rank.R` (0600) into the working folder
    mpihost.py seat         what mpirun starts: write, then wait for the end of mpirun
    mpihost.py check        end with LACKING where this interpreter has no Open MPI; the last line of output says why
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys

# Run by path: the only thing of ours that may be found is this distribution's own root, and no module beside this file.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from distroml.agent.launch import die_with_parent  # noqa: E402

RANK = "OMPI_COMM_WORLD_RANK"
LACKING = 3
INSTALL = "install Open MPI (Debian: apt-get install openmpi-bin libopenmpi-dev)"
# How Open MPI tells a process of its own who it is.
_TOLD = ("OMPI_", "PMIX_", "ORTE_")
# Ranks share the node as the job's slots say, whatever mpirun thinks of its cores. There is no other node to be
# reached, so nothing listens to one.
_OPTIONS = ("--oversubscribe", "--bind-to", "none", "--mca", "plm", "isolated", "--mca", "oob_tcp_if_include", "lo")


def run(count: str) -> None:
    """Become mpirun."""
    root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    seat = [sys.executable, "-S", "-E", "-s", os.path.abspath(__file__), "seat"]
    try:
        os.execvp("mpirun", ["mpirun", *root, *_OPTIONS, "-n", count, *seat])
    except OSError as error:
        raise SystemExit(f"cannot run mpirun: {error.strerror}; {INSTALL}") from None


def seat() -> None:
    """Hand the place over, then wait to be ended."""
    die_with_parent()
    if RANK not in os.environ:
        raise SystemExit(f"the mpirun on PATH is not Open MPI's: it sets no {RANK}; {INSTALL}")
    path = f"rank.{os.environ[RANK]}"
    told = {name: value for name, value in os.environ.items() if name.startswith(_TOLD)}
    with open(os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(told, file)
    os.rename(path + ".tmp", path)
    while True:
        signal.pause()


def why_not() -> str:
    """Why ranks of this interpreter cannot run over Open MPI, and what to install; empty where they can."""
    if shutil.which("mpirun") is None:
        return f"there is no mpirun on PATH; {INSTALL}"
    try:
        importlib.import_module("mpi4py").rc.initialize = False
    except ImportError:
        return f"{sys.executable} has no mpi4py; install it there: pip install 'distroml[mpi]'"
    try:
        library = str(importlib.import_module("mpi4py.MPI").Get_library_version())
    except (ImportError, RuntimeError) as error:
        return f"mpi4py finds no MPI library that it can load ({str(error).splitlines()[0]}); {INSTALL}"
    if not library.startswith("Open MPI"):
        return f"mpi4py loads {library.split(',')[0][:80]}, and ranks are started by Open MPI's mpirun; {INSTALL}"
    return ""


def main(role: str, *more: str) -> None:
    """Do what the role says."""
    if role == "check":
        if why := why_not():
            print(why)
            sys.exit(LACKING)
    elif role == "seat":
        seat()
    else:
        run(*more)


if __name__ == "__main__":
    main(*sys.argv[1:])
