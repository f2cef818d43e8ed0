"""PostgreSQL: history and its projections."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from deploy.stack.install import debian, libraries, run
from deploy.stack.server import Launch

USER = "distroml"
# It guards a server on loopback whose data is a developer's own.
PASSWORD = "distroml-local-secret"
_PROTOCOL = 3 << 16  # version 3.0
_PATIENCE_S = 1.0
_SOMEBODY = 1000


class Postgres:
    """`Server` for one PostgreSQL cluster, whose superuser is `distroml`."""

    name = "postgres"
    version = "15"
    ports = ("client",)

    def install(self, cache: Path) -> Path:
        """Debian 12's package, taken apart."""
        root = debian(cache, self.name, self.version, f"postgresql-{self.version}")
        return root / "usr" / "lib" / "postgresql" / self.version / "bin"

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process over `folder/data`, which is made where it is absent; fsync is on, as by default."""
        data = folder / "data"
        environment = libraries(programs.parents[4])
        if not (data / "PG_VERSION").exists():
            secret = folder / "password"
            secret.write_text(PASSWORD)
            secret.chmod(0o600)
            access = ("--username", USER, "--pwfile", str(secret), "--auth", "scram-sha-256")
            layout = ("--pgdata", str(data), "--encoding", "UTF8", "--locale", "C.UTF-8")
            run("postgres' data folder", [*_as_somebody(), str(programs / "initdb"), *access, *layout], env=environment)
        options = {"listen_addresses": "127.0.0.1", "port": ports["client"], "unix_socket_directories": ""}
        return Launch(
            command=(
                *(*_as_somebody(), str(programs / "postgres"), "-D", str(data)),
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ),
            environment=environment,
            # SIGTERM waits until every client has gone.
            stop_signal=signal.SIGINT,
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it asks who one is, for while it starts it turns everybody away."""
        try:
            with socket.create_connection(("127.0.0.1", ports["client"]), timeout=_PATIENCE_S) as connection:
                body = struct.pack("!i", _PROTOCOL) + f"user\0{USER}\0\0".encode()
                connection.sendall(struct.pack("!i", 4 + len(body)) + body)
                return connection.recv(1) == b"R"
        except OSError:
            return False

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where our services find it."""
        return {"DISTROML_POSTGRES": f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{ports['client']}/postgres"}


def _as_somebody() -> tuple[str, ...]:
    """What lets the superuser run a program that refuses to be his: a name space of users in which he is another.

    Files stay his outside, so folders that only he can enter will do.
    """
    return () if os.geteuid() else ("unshare", "--user", f"--map-user={_SOMEBODY}", f"--map-group={_SOMEBODY}")
