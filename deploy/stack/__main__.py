"""The stack on this machine: `python -m deploy.stack up|run|settings|down|status|install [SERVER...]`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.stack import registry
from deploy.stack.foreground import ending, follow
from deploy.stack.install import cache_folder
from deploy.stack.owner import Owner, owner_of
from deploy.stack.prometheus import Prometheus, told_where
from deploy.stack.running import Running, begin, is_free
from deploy.stack.server import Server, StackError

ENVIRONMENT = "environment"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__)
    parser.add_argument("verb", choices=("up", "run", "settings", "down", "status", "install"))
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"which; all by default: {registry.ALL}")
    parser.add_argument("--data", type=Path, default=Path(".distroml/stack"), help="their data [default: %(default)s]")
    parser.add_argument(
        "--ports", default="", help="for run and settings, of one server: client=2379,peer=2380 [default: free ones]"
    )
    options = parser.parse_args(arguments)
    try:
        chosen: Sequence[str] = options.servers or registry.names()
        if options.verb in ("up", "status") and not options.servers:
            chosen = [name for name in chosen if name not in registry.SECOND]
        servers = [registry.server(name) for name in chosen]
        data: Path = options.data.absolute()
        match options.verb:
            case "install":
                for one in servers:
                    print(f"{one.name} {one.version}: {one.install(cache_folder())}", flush=True)
            case "status":
                return status(servers, data)
            case "run":
                run(servers, data, _ports(options.ports, servers))
            case "settings":
                ports = _ports(options.ports, servers)
                if ports is None:
                    raise StackError(
                        "settings follow from ports: give those of one server, --ports client=2379,peer=2380"
                    )
                print(json.dumps(dict(servers[0].settings(ports))))
            case verb:
                with alone(data):
                    (up if verb == "up" else down)(servers, data)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def up(servers: Sequence[Server], data: Path) -> list[Running]:
    """Have all servers running and ready; returns those begun now, which outlive this process.

    What runs is left alone, and what ran before has the same ports again where they are free.
    """
    begun: list[Running] = []
    for one in servers:
        owner = owner_of(data / one.name)
        if owner is None or not serves(one, owner):
            if owner is not None:
                owner.end()
            print(f"{one.name} {one.version}: starting, after installing it where that is needed", flush=True)
            kept = owner.ports if owner and all(map(is_free, owner.ports.values())) else None
            begun.append(begin(one, data / one.name, ports=kept))
            owner = begun[-1].owner
        print(f"{one.name} {one.version}: {describe(owner)}", flush=True)
    write_settings(servers, data)
    return begun


def run(servers: Sequence[Server], data: Path, ports: Mapping[str, int] | None = None) -> None:
    """Have the servers running for as long as this process does; what is left of an earlier one is ended first.

    Raises:
        StackError: a server does not start, or ended by itself.
    """
    with ending() as told:
        begun: list[Running] = []
        with alone(data):
            down(servers, data)
            try:
                for one in servers:
                    begun.append(begin(one, data / one.name, ports=ports))
                    print(f"{one.name} {one.version}: {describe(begun[-1].owner)}", flush=True)
            except StackError:
                for one in reversed(begun):
                    one.stop()
                raise
            write_settings(servers, data)
        follow(begun, told)


def down(servers: Sequence[Server], data: Path) -> None:
    """End the servers, the last to start first; their data stays."""
    for one in reversed(servers):
        owner = owner_of(data / one.name)
        if owner is not None and owner.alive:
            owner.end()
            print(f"{one.name}: ended process {owner.pid}", flush=True)


def status(servers: Sequence[Server], data: Path) -> int:
    """Say what runs; 0 where all of them serve."""
    serving = 0
    for one in servers:
        owner = owner_of(data / one.name)
        if owner is None or not owner.alive:
            print(f"{one.name} {one.version}: not running")
        elif serves(one, owner):
            print(f"{one.name} {one.version}: {describe(owner)}")
            serving += 1
        else:
            print(f"{one.name} {one.version}: process {owner.pid} does not answer; see {data / one.name / 'log'}")
    return 0 if serving == len(servers) else 1


def serves(server: Server, owner: Owner) -> bool:
    """Whether its process is there and answers."""
    return owner.alive and server.ready(owner.ports)


def describe(owner: Owner) -> str:
    """Where it listens."""
    return f"process {owner.pid}, " + ", ".join(f"{name} 127.0.0.1:{port}" for name, port in owner.ports.items())


def write_settings(servers: Sequence[Server], data: Path) -> None:
    """Write the settings of every server that runs on this data, these and others, for the services of a shell."""
    known = {one.name: one for one in (*map(registry.server, registry.names()), *servers)}
    found: dict[str, str] = {}
    for one in known.values():
        owner = owner_of(data / one.name)
        if owner is not None and owner.alive:
            found |= one.settings(owner.ports)
            if one.name == Prometheus.name:
                found |= told_where(data / one.name)
    write_environment(data / ENVIRONMENT, found)
    print(f"settings for services: . {data / ENVIRONMENT}", flush=True)


def _ports(text: str, servers: Sequence[Server]) -> dict[str, int] | None:
    """Ports by name, as `client=2379,peer=2380` gives them; None for free ones. Raises `StackError`."""
    if not text:
        return None
    try:
        found = {name: int(port) for name, _, port in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise StackError(f"--ports {text!r}: expected NAME=PORT,NAME=PORT") from None
    if len(servers) != 1 or set(found) != set(servers[0].ports):
        wanted = "; ".join(f"{one.name}: {', '.join(one.ports)}" for one in servers)
        raise StackError(f"--ports {text!r} must name every port of one server ({wanted})")
    return found


def write_environment(path: Path, settings: dict[str, str]) -> None:
    """Settings as a shell reads them; for the owner's eyes only, for they hold passwords."""
    lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(lines)


@contextmanager
def alone(data: Path) -> Generator[None]:
    """The block while no other `up` or `down` works on this data."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
