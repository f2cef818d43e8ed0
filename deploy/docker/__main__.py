"""Containers on this machine: `python -m deploy.docker images|environment|install`."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.docker import engine, images
from deploy.stack.install import cache_folder
from deploy.stack.server import StackError

EXAMPLE = images.ROOT / "deploy" / "env.example"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m deploy.docker", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("images", help="build our images with this machine's engine")
    build.add_argument("names", nargs="*", metavar="SERVICE", help=f"which; all by default: {images.SERVICES}")
    build.add_argument("--tag", default="dev", help="their tag [default: %(default)s]")
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for a Dockerfile's ARG")
    build.add_argument("--host-network", action="store_true", help="build in this machine's network")
    environment = verbs.add_parser("environment", help="write what deploy/compose.yaml is told, with fresh secrets")
    environment.add_argument("--to", type=Path, default=images.ROOT / "deploy" / ".env", help="[default: %(default)s]")
    verbs.add_parser("install", help="bring what tests of containers need: an engine, Compose, a base image")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "environment":
            write_environment(options.to)
        elif options.verb == "install":
            install()
        elif not engine.answers({}):
            raise StackError("no Docker engine answers: start one, or name it with DOCKER_HOST")
        else:
            given = dict(_pair(text) for text in options.build_arg)
            names = options.names or images.SERVICES
            images.build(names, tag=options.tag, arguments=given, host_network=options.host_network)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def install() -> None:
    """Bring what an engine of one's own consists of; where none can be started, say why."""
    if why := engine.obstacle():
        print(f"no containers here: {why}")
        return
    cache = cache_folder()
    print(f"docker {engine.VERSION}: {engine.client(cache)['PATH'].partition(os.pathsep)[0]}", flush=True)
    print(f"base image: {engine.base_archive(cache)}", flush=True)


def write_environment(path: Path) -> None:
    """Fill the example's empty values with secrets, for the owner's eyes only; raises `StackError` over an old file."""
    lines = (_filled(line) for line in EXAMPLE.read_text().splitlines())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise StackError(
            f"{path} is there already, and the servers' data was made with its passwords; remove it only with the data"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{line}\n" for line in lines)
    print(f"wrote {path}")


def _filled(line: str) -> str:
    name, is_setting, value = line.partition("=")
    if line.startswith("#") or not is_setting or value:
        return line
    if name == "DISTROML_DEPLOYMENT":
        return f"{name}=dep-{secrets.token_hex(4)}"
    # Letters first: a server's configuration would take digits for a number.
    return f"{name}=s{secrets.token_hex(24)}"


def _pair(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given:
        raise StackError(f"--build-arg {text!r} is no NAME=VALUE")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
