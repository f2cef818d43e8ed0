"""Another machine on this one: an agent in a network namespace, whose cable to the control plane can be pulled."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.e2e.conftest import Plane, wait_for
from tests.robustness.stack import environment_of_process, standing_still

SERVERS = ("AWS_ENDPOINT_URL_S3", "DISTROML_ELASTICSEARCH", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""What says where servers are that agents and workers speak to themselves."""


def ip(*words: str) -> None:
    """Run `ip`; raises `RuntimeError`."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}; it needs root and iproute2")


@dataclass(frozen=True)
class Cable:
    """From this machine's end, at `here`, to the namespace `host`."""

    host: str
    interface: str
    here: str

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """No packet passes, and nobody is told."""
        ip("link", "set", self.interface, "down")
        try:
            yield
        finally:
            ip("link", "set", self.interface, "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """A namespace at the other end of a new cable; both are gone at the end."""
    # Another run's, of another clone or container, must never be taken for ours.
    tag = uuid.uuid4()
    made = Cable(f"dml{tag.hex[:8]}", f"dml{tag.hex[:8]}", f"10.231.{tag.bytes[9]}.{tag.bytes[10] // 4 * 4 + 1}")
    there = f"{made.here.rpartition('.')[0]}.{int(made.here.rpartition('.')[2]) + 1}"
    ip("netns", "add", made.host)
    try:
        ip("link", "add", made.interface, "type", "veth", "peer", "name", "eth0", "netns", made.host)
        ip("addr", "add", f"{made.here}/30", "dev", made.interface)
        ip("link", "set", made.interface, "up")
        ip("-n", made.host, "addr", "add", f"{there}/30", "dev", "eth0")
        ip("-n", made.host, "link", "set", "eth0", "up")
        ip("-n", made.host, "link", "set", "lo", "up")
        yield made
    finally:
        # Its end of the cable goes with it, and so does ours.
        ip("netns", "del", made.host)


@dataclass(frozen=True)
class OtherHost:
    """An agent, and what it is connected by."""

    cable: Cable
    agent: psutil.Process

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Without a connection to anything."""
        with self.cable.pulled():
            yield

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Without an agent that does anything; its workers are left alone."""
        with standing_still([self.agent]):
            yield


@contextmanager
def other_host(plane: Plane, folder: Path) -> Iterator[OtherHost]:
    """A node of two slots at the other end of a cable, registered."""
    with cable() as made, ExitStack() as begun:
        environ = _environment(plane, made, folder)
        addresses = [*plane.endpoints.services.values(), *(urlsplit(environ[name]).netloc for name in SERVERS)]
        ports = [address.rpartition(":")[2] for address in addresses]
        log = begun.enter_context((plane.folder.logs / "other-host.log").open("ab"))
        forwarder = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.forwarder", made.here, *ports], stdout=log, stderr=log
        )
        begun.callback(_end, forwarder)
        nodes = len(plane.cli.json("nodes"))
        command = ["ip", "netns", "exec", made.host, sys.executable, "-m", "distroml.agent"]
        agent = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        begun.callback(_end_agent, agent, folder)
        wait_for(lambda: len(plane.cli.json("nodes")) > nodes, 60, (plane.folder.logs / "other-host.log").read_text)
        # `ip netns exec` becomes what it runs.
        yield OtherHost(made, psutil.Process(agent.pid))


def _environment(plane: Plane, made: Cable, folder: Path) -> Mapping[str, str]:
    """That of the plane's own agent, with everything at the other end of the cable."""
    environ = environment_of_process(plane.pid("agent"))
    folder.mkdir()
    moved = {
        name: value.replace("127.0.0.1", made.here)
        for name, value in environ.items()
        if name in SERVERS or name.removeprefix("DISTROML_").lower() in plane.endpoints.services
    }
    return (
        environ
        | moved
        | {
            "DISTROML_DATA": str(folder),
            "DISTROML_TOKEN_FILE": str(plane.folder.token_file),
            "DISTROML_AGENT_SLOTS": "2",
            "DISTROML_LISTEN": "127.0.0.1:0",
            "DISTROML_METRICS_LISTEN": "127.0.0.1:0",
        }
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _end_agent(process: subprocess.Popen[bytes], folder: Path) -> None:
    """In order, with its workers."""
    (folder / "node" / "down").touch()
    process.terminate()
    try:
        process.wait(30)
    finally:
        _end(process)
