"""Real etcds for tests: with certificates, and several as one cluster."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from deploy.stack import Running, health
from deploy.stack.etcd import Etcd
from deploy.stack.running import begin
from distroml.cli.plane.ports import free_ports
from distroml.statestore.etcd import EtcdSettings, EtcdStateStore, open_state_store
from distroml.statestore.etcd.messages import STATUS, StatusResponse
from distroml.statestore.etcd.wire import encode


class TlsEtcd(Etcd):
    """An etcd whose clients' port speaks TLS."""

    def __init__(self, *options: str) -> None:
        super().__init__(options=options, scheme="https")

    def ready(self, ports):
        return health.accepts(ports["client"])


class OldEtcd(grpc.GenericRpcHandler):
    """Answers a question for its status as an etcd of some version."""

    def __init__(self, version):
        self.version = version

    def service(self, details):
        async def status(request, context):
            del request, context
            return encode(StatusResponse(version=self.version))

        return grpc.unary_unary_rpc_method_handler(status) if details.method == STATUS.path else None


@contextmanager
def cluster(folder: Path, size: int) -> Iterator[list[Running]]:
    """Members of one cluster, all ready."""
    ports = [dict(zip(("client", "peer"), free_ports(2), strict=True)) for _ in range(size)]
    initial = ",".join(f"m{n}=http://127.0.0.1:{one['peer']}" for n, one in enumerate(ports))

    def member(n: int) -> Running:
        server = Etcd(options=("--name", f"m{n}", "--initial-cluster", initial))
        return begin(server, folder / f"m{n}", ports=ports[n])

    # None of them is ready before most of them have met.
    with ThreadPoolExecutor(size) as pool, ExitStack() as stack:
        members = list(pool.map(member, range(size)))
        for one in members:
            stack.callback(one.stop)
        yield members


def url(server: Running, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


def store_on(*endpoints: str, deployment: str = "", timeout_s: float = 5.0, **settings) -> EtcdStateStore:
    """A state store of a new deployment, or of a given one."""
    settings = EtcdSettings(endpoints=endpoints, timeout_s=timeout_s, **settings)
    return open_state_store(settings, deployment or f"dep-{secrets.token_hex(4)}")
