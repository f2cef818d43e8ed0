from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.stack import Running, running
from deploy.stack.etcd import Etcd
from deploy.stack.nats import Nats
from distroml.relay.settings import RelaySettings
from distroml.rpc.servers import Servers

Make = Callable[..., RelaySettings]


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Etcd(), tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Nats(), tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def environ(etcd: Running, nats: Running) -> dict[str, str]:
    return {**etcd.server.settings(etcd.ports), **nats.server.settings(nats.ports)}


@pytest.fixture
def servers(environ: dict[str, str]) -> Servers:
    found = Servers.read(environ, [])
    assert found is not None
    return found


@pytest.fixture
def settings(servers: Servers, tmp_path: Path) -> RelaySettings:
    """Of a deployment of its own on the shared servers; objects are in a folder."""
    return RelaySettings(
        service="relay",
        data=tmp_path,
        token="token",
        deployment=f"dep-{secrets.token_hex(4)}",
        drain_s=0.5,
        servers=servers,
        ttl_s=1,
        seal_s=0.05,
    )
