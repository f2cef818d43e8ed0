"""The event store's promises, its commits on a real etcd.

What was committed is read from the outbox alone, with a relay at work behind it, and with that one's log on a real
nats-server.
"""

import pytest

from deploy.stack import running
from deploy.stack.nats import PASSWORD, USER, Nats
from distroml.eventstore.conformance import EventStoreConformance
from distroml.eventstore.jetstream import JetStreamLog, NatsConnection, NatsSettings
from distroml.eventstore.retiring_conformance import RetiringConformance
from libs.eventstore.tests.on_etcd import deployment


class OnEtcd(EventStoreConformance, RetiringConformance):
    async def sealable(self):
        await self.deployment.seal()


class TestOutbox(OnEtcd):
    @pytest.fixture
    async def stores(self, etcd):
        async with deployment(etcd) as stores:
            self.deployment = stores
            yield stores.events, stores.state


class TestRelayed(OnEtcd):
    @pytest.fixture
    async def stores(self, etcd):
        async with deployment(etcd, relayed=True) as stores:
            self.deployment = stores
            yield stores.events, stores.state


@pytest.fixture(scope="module")
def nats(tmp_path_factory):
    with running(Nats(), tmp_path_factory.mktemp("nats")) as server:
        yield server


class TestJetStream(OnEtcd):
    @pytest.fixture
    async def stores(self, etcd, nats):
        where = (f"nats://127.0.0.1:{nats.port}",)
        connection = NatsConnection(NatsSettings(servers=where, user=USER, password=PASSWORD))
        await connection.connect()
        logs = []

        def log(id):
            logs.append(JetStreamLog(connection, id, keep_bytes=1 << 26))
            return logs[-1]

        async with deployment(etcd, relayed=True, log=log) as stores:
            self.deployment = stores
            yield stores.events, stores.state
        await logs[0].tail()
        await connection.client.jetstream().delete_stream(logs[0].name)
        await connection.close()
