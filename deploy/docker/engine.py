"""A Docker engine of one's own, from Debian's package and without installing it: for tests, and where there is none.

It has its own socket, data and images, and leaves a machine's own engine alone. It needs the superuser, control groups
and a Debian 12 machine; `obstacle` says which of them is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.stack.install import debian, go_build, libraries, once, run
from deploy.stack.server import Launch, StackError

VERSION = "20.10"
COMPOSE_VERSION = "2.40.3"
_COMPOSE_MODULE = f"""\
go 1.24.9

require github.com/docker/compose/v2 v{COMPOSE_VERSION}

exclude (
	github.com/davecgh/go-spew v1.1.2-0.20180830191138-d8f796af33cc
	github.com/pmezard/go-difflib v1.0.1-0.20181226105442-5d4384ee4fb2
)
"""
_RELEASE = "bookworm"
# `curl` and `wget` are what health checks of servers call.
_PACKAGES = "ca-certificates,curl,python3,python3-pip,python3-venv,wget"
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


class Docker:
    """`Server` for one engine over `folder`; its clients find it by `DOCKER_HOST`."""

    name = "docker"
    version = VERSION
    ports: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        """`folder` is the one that it is begun with; short, for the name of a socket has 107 characters at most."""
        self._socket = folder.absolute() / "socket"

    def install(self, cache: Path) -> Path:
        """Debian 12's package, taken apart."""
        return debian(cache, self.name, self.version, "docker.io") / "usr" / "sbin"

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One engine, containerd below it; no bridge of its own, no forwarding: networks are made by who needs one."""
        root = programs.parent.parent
        tools = folder / "bin"
        tools.mkdir(exist_ok=True)
        for name in ("iptables", "ip6tables"):
            # Debian chooses which of two programs this is when it installs the package.
            (tools / name).unlink(missing_ok=True)
            (tools / name).symlink_to(programs / "xtables-legacy-multi")
        (folder / "daemon.json").write_text("{}")
        found = libraries(root)
        path = os.pathsep.join(map(str, (tools, programs, root / "usr" / "bin", os.environ["PATH"])))
        return Launch(
            command=(
                *(str(programs / "dockerd"), "--config-file", str(folder / "daemon.json")),
                *("--data-root", str(folder / "data"), "--exec-root", str(folder / "run")),
                *("--pidfile", str(folder / "pid"), "--host", self.host),
                *("--bridge", "none", "--ip-forward=false", "--ip6tables=false", "--log-level", "warn"),
            ),
            environment={
                **found,
                "PATH": path,
                "XTABLES_LIBDIR": str(Path(found["LD_LIBRARY_PATH"]) / "xtables"),
            },
        )

    @property
    def host(self) -> str:
        """What `DOCKER_HOST` says."""
        return f"unix://{self._socket}"

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it answers."""
        return self._socket.exists() and answers(self.settings(ports))

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where clients find it; images are built by the engine itself, for there is no BuildKit beside it."""
        return {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}


def answers(environment: Mapping[str, str]) -> bool:
    """Whether an engine answers the client in this environment."""
    try:
        command = ["docker", "version", "--format", "{{.Server.Version}}"]
        done = subprocess.run(command, env=os.environ | dict(environment), capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def obstacle(user: int | None = None) -> str | None:
    """Why no engine can be started here by a user, this process's own by default, in one line; None where one can."""
    if os.geteuid() if user is None else user:
        return "an engine of one's own needs the superuser"
    if not shutil.which("apt-get"):
        return "an engine of one's own comes from Debian's packages, and this machine has none"
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists() and not Path("/sys/fs/cgroup/devices").exists():
        return "no control groups are mounted at /sys/fs/cgroup"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file system"
    return None


@contextmanager
def unmounted(folder: Path) -> Generator[None]:
    """The block, after which nothing is mounted below an engine's folder: it leaves a name space of networks there."""
    try:
        yield
    finally:
        below = f" {folder.absolute()}/"
        lines = Path("/proc/self/mounts").read_text().splitlines()
        for target in sorted((line.split()[1] for line in lines if below in line), reverse=True):
            run("an engine's end", ["umount", target])


def client(cache: Path) -> dict[str, str]:
    """The environment in which `docker` and `docker compose` are found, at versions that fit the engine."""
    programs = debian(cache, "docker", VERSION, "docker.io") / "usr" / "bin"
    compose = go_build(
        cache,
        "docker-compose",
        COMPOSE_VERSION,
        _COMPOSE_MODULE,
        {"docker-compose": "github.com/docker/compose/v2/cmd"},
    )
    # The client looks for its plugins below the folder of its configuration.
    configuration = once(cache, "docker-client", COMPOSE_VERSION, lambda made: _plugins(made, compose))
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "DOCKER_CONFIG": str(configuration)}


def _plugins(folder: Path, compose: Path) -> None:
    (folder / "cli-plugins").mkdir()
    (folder / "cli-plugins" / "docker-compose").symlink_to(compose / "docker-compose")


def base_archive(cache: Path) -> Path:
    """The file system of a small Debian 12 with Python, as `docker import` takes it; made by debootstrap.

    It trusts the certificate authorities that this machine trusts.
    """
    tools = debian(cache, "debootstrap", "1.0", "debootstrap") / "usr"

    def make(folder: Path) -> None:
        what, root = "a Debian base image", folder / "root"
        asked = ["Identifier: Packages", f"Codename: {_RELEASE}", "Component: main"]
        told = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", *asked], capture_output=True, text=True, check=True
        ).stdout.split()
        if not told:
            raise StackError(f"{what}: apt knows no archive of Debian {_RELEASE}; it makes base images of this release")
        options = ["--variant=minbase", f"--include={_PACKAGES}"]
        script = {"DEBOOTSTRAP_DIR": str(tools / "share" / "debootstrap")}
        run(what, [str(tools / "sbin" / "debootstrap"), *options, _RELEASE, str(root), told[0]], env=script)
        if _AUTHORITIES.exists():
            shutil.copyfile(_AUTHORITIES, root / _AUTHORITIES.relative_to("/"))
        left_out = [f"--exclude=./{name}" for name in ("dev", "proc", "sys", "var/cache/apt", "var/lib/apt/lists")]
        run(what, ["tar", "--create", "--file", str(folder / "base.tar"), "-C", str(root), *left_out, "."])
        shutil.rmtree(root)

    return once(cache, "debian-base", "12", make) / "base.tar"
