"""NATS with certificates, with several servers, and as a cluster that loses its leader."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import trustme

from deploy.stack import running
from deploy.stack.nats import PASSWORD, USER, Nats
from deploy.stack.running import begin
from distroml.cli.plane.ports import free_ports
from distroml.eventstore import StoreDown
from distroml.eventstore.jetstream import JetStreamLog, JetStreamReader, NatsConnection, NatsSettings
from distroml.eventstore.relay.core import BEGINNING
from distroml.eventstore.relay.port import LogMoved
from libs.eventstore.tests.log_parts import LOG, events_of, history

EVENTS = events_of(history(80))
TRIED_AGAIN = (StoreDown, LogMoved)


def settings(*servers, **changes):
    urls = tuple(f"nats://127.0.0.1:{server.port}" for server in servers)
    return NatsSettings(**({"servers": urls, "user": USER, "password": PASSWORD, "timeout_s": 2.0} | changes))


async def again(call, within_s=30.0):
    """What a call returns once it succeeds."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await call()
            except TRIED_AGAIN:
                await asyncio.sleep(0.1)


async def test_with_certificates_both_sides_are_sure_of_the_other(tmp_path):
    authority, other = trustme.CA(), trustme.CA()
    files = {}
    for name, issuer in (("server", authority), ("client", authority), ("stranger", other)):
        issued = issuer.issue_cert("127.0.0.1")
        files[name] = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(files[name][0])
        issued.private_key_pem.write_to_path(files[name][1])
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    certificate, key = files["server"]
    more = f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{tmp_path / "ca.pem"}", verify: true }}'
    with running(Nats(more=more), tmp_path / "nats") as server:

        async def connect(ca, ours):
            connection = NatsConnection(
                settings(server, ca_file=tmp_path / ca, cert_file=files[ours][0], key_file=files[ours][1])
            )
            await connection.connect()
            return connection

        connection = await connect("ca.pem", "client")
        log = JetStreamLog(connection, LOG, keep_bytes=1 << 24)
        assert (await log.publish(await log.tail(), BEGINNING, EVENTS[:3])).sequence == 3
        await connection.close()
        with pytest.raises(StoreDown, match="certificate verify failed"):
            await connect("other.pem", "client")
        with pytest.raises(StoreDown, match="no NATS server could be used"):
            await connect("ca.pem", "stranger")
        with pytest.raises(StoreDown, match="no NATS server could be used"):
            await NatsConnection(settings(server)).connect()
    with pytest.raises(StoreDown, match=r"certificates for NATS cannot be read .*gone.pem"):
        await NatsConnection(settings(server, ca_file=tmp_path / "gone.pem")).connect()


async def test_a_connection_goes_over_to_another_server_and_back(tmp_path):
    with running(Nats(), tmp_path / "a") as first, running(Nats(), tmp_path / "b") as second:
        connection = NatsConnection(settings(first, second))
        await connection.connect()

        async def connected_to(server):
            if connection.client.connected_url.port != server.port:
                raise StoreDown("it has not noticed yet")

        for gone, there in ((first, second), (second, first), (first, second)):
            gone.kill()
            await again(lambda there=there: connected_to(there))
            gone.restart()
        await connection.close()
        with pytest.raises(StoreDown, match="not connected"):
            _ = connection.client


@pytest.fixture
def cluster(tmp_path):
    """Three servers that are one."""
    routes = free_ports(3)
    joined = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)

    def member(n):
        more = f'cluster {{ name: c, listen: "127.0.0.1:{routes[n]}", routes: [{joined}] }}'
        return begin(Nats(more=more), tmp_path / str(n))

    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        members = list(pool.map(member, range(3)))
        for one in members:
            stack.callback(one.stop)
        yield members


async def test_a_cluster_that_loses_its_leader_keeps_the_order(cluster):
    connection = NatsConnection(settings(*cluster))
    await connection.connect()
    log = JetStreamLog(connection, LOG, keep_bytes=1 << 24, replicas=3)
    tail = await again(log.tail)
    tail = await again(lambda: log.publish(tail, BEGINNING, EVENTS[:10]))
    info = await log.info()
    assert info is not None
    assert info.cluster is not None
    (leader,) = [one for one in cluster if f"distroml-{one.port}" == info.cluster.leader]
    leader.kill()

    async def publish_the_rest():
        tail = await log.tail()
        assert tail.place is not None
        return await log.publish(tail, tail.place, EVENTS[tail.sequence :])

    assert (await again(publish_the_rest)).sequence == len(EVENTS)
    leader.restart()

    async def read():
        page = await JetStreamReader(log).read(BEGINNING, (), 1000)
        if page is None or len(page.events) < len(EVENTS):
            raise LogMoved("a replica is behind")
        return page.events

    assert list(await again(read)) == EVENTS
    await connection.close()
