"""Bringing programs into the user's cache folder, once per version, whoever asks at the same time."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.stack.server import StackError

_GO_ENVIRONMENT = {"GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
_OUTPUT_TAIL_CHARS = 2000


def cache_folder() -> Path:
    """`$DISTROML_STACK_CACHE`, else `distroml/stack` in the user's cache folder."""
    if chosen := os.environ.get("DISTROML_STACK_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distroml" / "stack"


def once(cache: Path, name: str, version: str, make: Callable[[Path], None]) -> Path:
    """The folder `cache/name-version`, filled by `make` the first time; complete wherever it exists."""
    target = cache / f"{name}-{version}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as folder:
                made = Path(folder) / "made"
                made.mkdir()
                make(made)
                made.rename(target)
    return target


def go_install(cache: Path, name: str, version: str, package: str) -> Path:
    """The folder of the program `name`, built from a Go package at a version: `path/to/cmd@v1.2.3`.

    For modules without `replace` directives; `go_build` takes the others.
    """

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as bin_folder:
            environment = {"GOBIN": bin_folder}
            run(f"{name} {version}", [_go(), "install", "-trimpath", "-ldflags=-s -w", package], env=environment)
            (built,) = Path(bin_folder).iterdir()
            shutil.move(built, folder / name)

    return once(cache, name, version, make)


def go_build(cache: Path, name: str, version: str, go_mod: str, packages: Mapping[str, str]) -> Path:
    """The folder of programs built inside a throw-away module: `packages` maps a program to its Go package.

    `go_mod` is the module's file without its `module` line. So also what `go install` refuses can be had: a module
    whose own `replace` and `exclude` directives are repeated there.
    """
    imports = "".join(f'import _ "{package}"\n' for package in packages.values())

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as text:
            module = Path(text)
            (module / "go.mod").write_text(f"module local/build\n\n{go_mod}")
            # The import of what is built keeps `go mod tidy` from dropping it.
            (module / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\n{imports}")
            run(f"{name} {version}", [_go(), "mod", "tidy"], cwd=module)
            for program, package in packages.items():
                command = [_go(), "build", "-trimpath", "-ldflags=-s -w", "-o", str(folder / program), package]
                run(f"{name} {version}", command, cwd=module)

    return once(cache, name, version, make)


def go_build_pinned(cache: Path, name: str, version: str, module: str, package: str, *, flags: str = "") -> Path:
    """The folder of the program `name`, built from a package of a module with exactly the module's own dependencies.

    For a large program: `module`, as `path@v1.2.3`, says its versions and their sums, and its `replace` directives
    hold. `flags` are added to the linker's.
    """

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as text:
            what, build = f"{name} {version}", Path(text)
            source = Path(json.loads(run(what, [_go(), "mod", "download", "-json", module], cwd=build))["Dir"])
            lines = (source / "go.mod").read_text().partition("\n")[2]
            path, _, at = module.partition("@")
            (build / "go.mod").write_text(f"module local/build\n{lines}\nrequire {path} {at}\n")
            (build / "go.sum").write_bytes((source / "go.sum").read_bytes())
            # Not `go mod tidy`: it wants what only tests of the dependencies' dependencies need, all of it.
            run(what, [_go(), "get", f"{path}/{package}@{at}"], cwd=build)
            program = str(folder / name)
            linking = f"-ldflags=-s -w {flags}".rstrip()
            run(what, [_go(), "build", "-trimpath", linking, "-o", program, f"{path}/{package}"], cwd=build)

    return once(cache, name, version, make)


def debian(cache: Path, name: str, version: str, package: str) -> Path:
    """A folder laid out as the file system, with a package of this Debian and what it needs and the machine lacks.

    Nothing is installed: no one needs to be root, and no service is begun that a package would begin.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise StackError(
            f"{name} comes from Debian's package {package}, and this machine has no apt-get: take a container"
        )

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as text:
            state, packages = Path(text), Path(text) / "archives"
            for needed in ("lists/partial", "archives/partial"):
                (state / needed).mkdir(parents=True)
            options = [
                f"Dir::State::lists={state / 'lists'}",
                f"Dir::Cache={state}",
                f"Dir::Cache::archives={packages}",
            ]
            # The locks are the system's; here nobody else is.
            apt = ["apt-get", "-qq", *(f"-o{option}" for option in (*options, "Debug::NoLocking=1"))]
            what = f"{name} {version}"
            run(what, [*apt, "update"])
            choice = ("--yes", "--download-only", "--no-install-recommends", "--reinstall")
            run(what, [*apt, *choice, "install", package])
            for archive in sorted(packages.glob("*.deb")):
                run(what, ["dpkg-deb", "--extract", str(archive), str(folder)])

    return once(cache, name, version, make)


def libraries(root: Path) -> dict[str, str]:
    """The environment in which the programs of `debian` find the libraries that came with them."""
    return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, sorted(root.glob("usr/lib/*-linux-gnu*"))))}


def run(what: str, command: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command of an installation; what it printed. Raises `StackError` with the end of that where it fails."""
    environment = os.environ | _GO_ENVIRONMENT | dict(env or {})
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr)[-_OUTPUT_TAIL_CHARS:]
        raise StackError(f"installing {what}: `{' '.join(command)}` failed with status {done.returncode}:\n{output}")
    return done.stdout


def _go() -> str:
    found = shutil.which("go")
    if found is None:
        raise StackError("this server is built from source and there is no `go` on PATH: install Go 1.26 or newer")
    return found
