"""nats-server with JetStream: the log of the stack, each publish on disk before it is acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deploy.stack import health
from deploy.stack.install import go_install
from deploy.stack.server import Launch

# What guards a server on loopback whose data is a developer's own; a real deployment brings its own.
USER = "distroml"
PASSWORD = "distroml-local"

# Without `sync_interval: always` an acknowledged publish may be lost with the machine's power.
_CONFIGURATION = """\
listen: "127.0.0.1:{client}"
http: "127.0.0.1:{monitor}"
server_name: "distroml-{client}"
authorization {{ user: "{user}", password: "{password}" }}
jetstream {{
    store_dir: "{folder}"
    sync_interval: always
}}
{more}
"""


class Nats:
    """`Server` for one nats-server with JetStream."""

    name = "nats"
    version = "2.15.2"
    ports = ("client", "monitor")

    def __init__(self, *, more: str = "") -> None:
        """`more` is added to its configuration: certificates, a cluster."""
        self._more = more

    def install(self, cache: Path) -> Path:
        """Built from source, half a minute the first time."""
        return go_install(cache, "nats-server", self.version, f"github.com/nats-io/nats-server/v2@v{self.version}")

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process over `folder/data`, configured by `folder/nats.conf`."""
        configuration = folder / "nats.conf"
        settings = {"folder": folder / "data", "user": USER, "password": PASSWORD, "more": self._more}
        configuration.write_text(_CONFIGURATION.format(**ports, **settings))
        return Launch(command=(str(programs / "nats-server"), "--config", str(configuration)))

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether JetStream has recovered its streams, too."""
        return health.answers_http(ports["monitor"], "/healthz")

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where our services find their log, and who they are there."""
        return {
            "DISTROML_NATS_SERVERS": f"nats://127.0.0.1:{ports['client']}",
            "DISTROML_NATS_USER": USER,
            "DISTROML_NATS_PASSWORD": PASSWORD,
        }
