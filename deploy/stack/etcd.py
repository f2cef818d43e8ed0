"""etcd: the state store of the stack, and where decisions are committed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deploy.stack import health
from deploy.stack.install import go_build
from deploy.stack.server import Launch

_MODULE = """\
go 1.25.0

require (
	go.etcd.io/etcd/server/v3 v{version}
	go.etcd.io/etcd/etcdctl/v3 v{version}
)
"""


class Etcd:
    """`Server` for a cluster of one member, which syncs every commit to its disk."""

    name = "etcd"
    version = "3.6.16"
    ports = ("client", "peer")

    def __init__(self, *, options: tuple[str, ...] = (), scheme: str = "http") -> None:
        self._options, self._scheme = options, scheme

    def install(self, cache: Path) -> Path:
        """Built from source, a minute the first time; etcdctl beside it."""
        module = _MODULE.format(version=self.version)
        packages = {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"}
        return go_build(cache, self.name, self.version, module, packages)

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One member over `folder/data`."""
        client = f"{self._scheme}://127.0.0.1:{ports['client']}"
        peer = f"http://127.0.0.1:{ports['peer']}"
        return Launch(
            command=(
                *(str(programs / "etcd"), "--name", "distroml", "--data-dir", str(folder / "data")),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"distroml={peer}"),
                # On one machine members hear of one another soon; the least ttl of a lease follows from it: 1 s.
                *("--heartbeat-interval", "50", "--election-timeout", "500"),
                # History is kept for an hour, and idle watches are told well within it how far they have come.
                *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
                *("--watch-progress-notify-interval", "1m"),
                *("--log-level", "warn", *self._options),
            )
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it answers reads that need a leader."""
        return health.answers_http(ports["client"], "/health")

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where our services find it."""
        return {"DISTROML_ETCD_ENDPOINTS": f"{self._scheme}://127.0.0.1:{ports['client']}"}
