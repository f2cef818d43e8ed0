"""What a real server that does not serve us is told to be: for doctor, health, and who starts services.

Kind by kind of bad server, for each of them: `tests/robustness/test_bad_servers.py`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import replace

from deploy.stack import Running
from distroml.eventstore.jetstream import JetStreamLog, NatsConnection, NatsSettings
from distroml.relay.settings import RelaySettings
from distroml.rpc import open_stores
from distroml.rpc.serverclocks import clocks_trouble
from distroml.rpc.servers import Servers
from distroml.rpc.serverstores import survey


async def test_what_serves_is_well(servers: Servers) -> None:
    assert await survey(servers, "dep-1") == {"etcd": None, "nats": None, "clocks": None}


async def test_clocks_that_are_apart_are_told_by_whose_they_are(servers: Servers, nats: Running) -> None:
    access = servers.nats
    connection = NatsConnection(NatsSettings(servers=access.addresses, user=access.user, password=access.password))
    await connection.connect()
    log = JetStreamLog(connection, f"dep-{secrets.token_hex(4)}", keep_bytes=1 << 20)

    def whose(what: str) -> str:
        return rf"the clock of {what} is 1[45] min \d+ s"

    # Before there is a stream, NATS does not say its time.
    ahead = await clocks_trouble(servers.etcd, log, now=lambda: time.time() - 900)
    assert re.match(
        whose(f"etcd at {servers.etcd.addresses[0]}") + " ahead of this machine's: have both set", ahead or ""
    )
    assert "NATS" not in (ahead or "")
    await log.tail()
    behind = await clocks_trouble(servers.etcd, log, now=lambda: time.time() + 900)
    assert re.search(whose("NATS") + " behind", behind or "")
    assert re.search(whose("etcd at .*") + " behind", behind or "")
    assert await clocks_trouble(servers.etcd, log) is None
    # Who does not answer says no time.
    await connection.close()
    assert await clocks_trouble(replace(servers.etcd, addresses=(f"http://127.0.0.1:{nats.port}",)), log) is None


async def test_wrong_passwords_and_swapped_addresses_are_told(servers: Servers, etcd: Running, nats: Running) -> None:
    swapped = replace(servers.etcd, addresses=(*servers.etcd.addresses, f"http://127.0.0.1:{nats.port}"))
    found = await survey(Servers(etcd=swapped, nats=replace(servers.nats, password="guess")), "dep-1")
    assert "no etcd" in (found["etcd"] or "")
    assert "Authorization Violation" in (found["nats"] or "")
    assert "guess" not in (found["nats"] or "")

    swapped = replace(servers.nats, addresses=(f"nats://127.0.0.1:{etcd.port}",))
    found = await survey(Servers(etcd=replace(servers.etcd, user="ann", password="guess"), nats=swapped), "dep-1")
    assert "authentication is off" in (found["etcd"] or "")
    assert "no NATS server could be used" in (found["nats"] or "")


async def test_a_service_starts_before_its_servers_and_tells_what_it_waits_for(
    settings: RelaySettings, nats: Running
) -> None:
    nats.kill()
    told: dict[str, str | None] = {}
    async with open_stores(settings) as stores:
        assert stores.servers is not None
        watching = asyncio.create_task(stores.watch(told.__setitem__))
        try:
            async with asyncio.timeout(20):
                while not {"etcd", "nats"} <= told.keys():
                    await asyncio.sleep(0.02)
        finally:
            await asyncio.to_thread(nats.restart)
        assert told["etcd"] is None
        assert "NATS is not connected" in (told["nats"] or "")
        async with asyncio.timeout(30):
            while await stores.servers.looks["nats"]():
                await asyncio.sleep(0.05)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
