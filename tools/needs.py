"""Says in a second what this machine lacks for the whole suite beyond Python, make and git: `python tools/needs.py`.

Ends with 1 where something is missing that the suite cannot install by itself; each line says what, what for and how to
get it. Programs of servers that are in the cache already need nothing any more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploy.docker import engine
from deploy.stack import registry
from deploy.stack.install import cache_folder

GO = (1, 26)
# Every other program of the stack is built by Go.
BY_MAVEN, FROM_DEBIAN = frozenset({"elasticsearch"}), frozenset({"postgres", "prometheus", "docker"})
# What tools/compiler, tools/openmpi and tools/browser install, and the programs of which they need one.
PACKAGES = {
    "g++": ("c++", "g++", "clang++"),
    "openmpi-bin libopenmpi-dev": ("mpirun",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
}


@dataclass(frozen=True)
class Machine:
    """What is asked of a machine.

    Attributes:
        which: the path of a program, None where there is none.
        says: what a program prints when it is called with these words.
        mounts: whether small file systems can be mounted; else why not.
        absent: names of the stack's programs that are not in the cache.
        root: whether this is the superuser.
    """

    which: Callable[[str], str | None]
    says: Callable[..., str]
    mounts: str | None
    absent: frozenset[str]
    root: bool


def lacking(machine: Machine) -> Iterator[str]:
    """One line for each thing that is missing."""
    apt = machine.which("apt-get") is not None
    installs = apt and (machine.root or machine.which("sudo") is not None)
    for packages, programs in PACKAGES.items():
        if not installs and not any(map(machine.which, programs)):
            yield f"{programs[0]}: install it, as root (Debian: apt install {packages})"
    debian, maven = machine.absent & FROM_DEBIAN, machine.absent & BY_MAVEN
    built = machine.absent - FROM_DEBIAN - BY_MAVEN
    if built and _go(machine) < GO:
        wanted = ".".join(map(str, GO))
        yield f"Go {wanted} or newer on PATH, to build {_list(built)}: https://go.dev/dl"
    if maven and machine.which("mvn") is None:
        yield f"mvn, to lay out {_list(maven)}: install Maven (Debian: apt install maven)"
    if debian and not (apt and machine.which("dpkg-deb")):
        yield f"apt-get and dpkg-deb, to take {_list(debian)} out of packages: run it on Debian 12, in a container say"
    if machine.mounts is not None:
        yield f"the right to mount a tmpfs, to fill disks of servers: run it as root ({machine.mounts})"


def _go(machine: Machine) -> tuple[int, ...]:
    if machine.which("go") is None:
        return ()
    found = re.search(r"go(\d+)\.(\d+)", machine.says("go", "version"))
    return tuple(map(int, found.groups())) if found else ()


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def this() -> Machine:
    """This machine."""
    cache = cache_folder()
    programs = {one.name: one.version for one in map(registry.server, registry.names())}
    if engine.obstacle() is None:
        programs |= {"docker": engine.VERSION, "docker-compose": engine.COMPOSE_VERSION}
    absent = frozenset(name for name, version in programs.items() if not any(cache.glob(f"{name}*-{version}")))
    return Machine(shutil.which, _says, _mounts(), absent, root=os.geteuid() == 0)


def _says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def _mounts() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            done = subprocess.run(mount, capture_output=True, text=True, timeout=20, check=False)
        except OSError as error:
            return str(error)
        if done.returncode:
            return done.stderr.strip()
        subprocess.run(["umount", folder], timeout=20, check=True)
    return None


def main() -> int:
    """The command line; see the module's text."""
    found = list(lacking(this()))
    if found:
        print("the whole suite needs what this machine lacks:", *found, sep="\n  ", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
