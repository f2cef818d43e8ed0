"""Our images, as `deploy/compose.yaml` names them: which there are, from which Dockerfile, in which order."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.stack.server import StackError

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
SERVICES = ("scheduler", "rendezvous", "checkpoint", "telemetry", "relay", "agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of ours: its last word names it, as in `distroml/scheduler:dev`."""

    name: str
    context: Path
    dockerfile: Path
    target: str = ""
    arguments: tuple[str, ...] = ()
    """Names of the ARGs for images that it is made from."""

    def command(self, tag: str, arguments: Mapping[str, str], *, host_network: bool) -> list[str]:
        """What builds it; its own ARGs come before those that were given."""
        mine = {name: reference(name.lower(), tag) for name in self.arguments} | dict(arguments)
        return [
            *("docker", "build", "--file", str(self.dockerfile), "--tag", reference(self.name, tag)),
            *(("--target", self.target) if self.target else ()),
            *(("--network", "host") if host_network else ()),
            *(word for name, value in mine.items() for word in ("--build-arg", f"{name}={value}")),
            str(self.context),
        ]


def reference(name: str, tag: str) -> str:
    """What an engine calls an image of ours."""
    return f"distroml/{name}:{tag}"


def images(names: Sequence[str] = SERVICES) -> list[Image]:
    """The images of these services, those first that others are made from; raises `StackError`."""
    if unknown := sorted(set(names) - set(SERVICES)):
        raise StackError(f"there is no image {', '.join(unknown)}; there are {', '.join(SERVICES)}")
    common = ROOT / "deploy" / "docker" / "Dockerfile"
    return [
        *(Image(name=stage, context=ROOT, dockerfile=common, target=stage) for stage in ("base", "wheel")),
        *(
            Image(
                name=name,
                context=ROOT / "services" / name,
                dockerfile=ROOT / "services" / name / "Dockerfile",
                arguments=("BASE", "WHEEL"),
            )
            for name in names
        ),
    ]


def build(
    names: Sequence[str],
    *,
    tag: str,
    arguments: Mapping[str, str],
    environment: Mapping[str, str] = os.environ,
    host_network: bool = False,
) -> None:
    """Build the images of these services; raises `StackError` with the builder's words in the terminal above it.

    Args:
        names: which.
        tag: their tag.
        arguments: for ARGs of Dockerfiles; those that a Dockerfile does not have are left out there.
        environment: of the client.
        host_network: whether what is run while building uses this machine's network, as behind a proxy on loopback.
    """
    for image in images(names):
        known = declared(image.dockerfile)
        fitting = {name: value for name, value in arguments.items() if name in known}
        print(f"building {reference(image.name, tag)}", flush=True)
        command = image.command(tag, fitting, host_network=host_network)
        if code := subprocess.run(command, env=dict(environment), check=False).returncode:
            raise StackError(f"`{' '.join(command)}` ended with status {code}")


def declared(dockerfile: Path) -> set[str]:
    """Names of a Dockerfile's ARGs."""
    words = (line.split() for line in dockerfile.read_text().splitlines())
    return {line[1].partition("=")[0] for line in words if line[:1] == ["ARG"]}


def servers() -> dict[str, str]:
    """Images of the real servers, by service, as the compose file pins them."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    return {name: service["image"] for name, service in services.items() if "distroml/" not in service["image"]}
