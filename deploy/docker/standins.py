"""Images of real servers from the programs that `deploy.stack` brings, under the names that the compose file pins.

So the compose file is run as it stands where no registry of images can be reached. They are for an engine of one's own
(`deploy.docker.engine`) only: elsewhere they would be taken for the official ones.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.docker import images
from deploy.docker.engine import base_archive
from deploy.stack import registry
from deploy.stack.install import run

BASE = "distroml/debian:12"
SERVERS = ("etcd", "nats", "minio")
_DOCKERFILE = f"FROM {BASE}\nCOPY . /usr/local/bin/\n"
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def prepare(cache: Path, environment: Mapping[str, str]) -> None:
    """Have the base image and the stand-ins in the engine of this environment."""
    if not has(BASE, environment):
        # pip would trust only those authorities that it brings along.
        trust = f"ENV PIP_CERT={_AUTHORITIES}"
        run("the base image", ["docker", "import", "-c", trust, str(base_archive(cache)), BASE], env=environment)
    pinned = images.servers()
    for name in SERVERS:
        if not has(pinned[name], environment):
            programs = registry.server(name).install(cache)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "Dockerfile"
                file.write_text(_DOCKERFILE)
                command = ["docker", "build", "--file", str(file), "--tag", pinned[name], str(programs)]
                run(f"a stand-in for {pinned[name]}", command, env=environment)


def has(image: str, environment: Mapping[str, str]) -> bool:
    """Whether the engine has an image of this name."""
    command = ["docker", "image", "inspect", image]
    # The client is found by the environment's PATH, as `run` finds it.
    return subprocess.run(["env", *command], env=dict(environment), capture_output=True, check=False).returncode == 0
