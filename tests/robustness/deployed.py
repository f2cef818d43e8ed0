"""A deployment that the environment names servers for, asked in process what `doctor` and health say of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distroml.cli import doctor_servers
from distroml.cli.finding import Finding
from distroml.cli.objects import location_of
from distroml.cli.plane.datafolder import DataFolder
from distroml.eventstore.jetstream import NatsConnection, NatsSettings
from distroml.eventstore.memory import open_event_store
from distroml.logstore.settings import ElasticSettings
from distroml.relay.service import install as install_relay
from distroml.relay.settings import RelaySettings
from distroml.rpc import Service, open_stores
from distroml.rpc.postgres import POSTGRES
from distroml.rpc.servers import Servers
from distroml.telemetry import clocks
from distroml.telemetry.history.postgres import PostgresHistory
from distroml.telemetry.lines import open_lines
from distroml.telemetry.live import Changes
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.settings import Limits
from tests.robustness.imposters import HOST, Secured

WITHIN_S = 60.0
RETENTION_S = 3600

Environ = Mapping[str, str | None]
"""Variables that differ from those of a deployment whose servers are well; None: it is not set."""


@dataclass
class Deployment:
    """A data folder of the profile `stack` that the environment names servers for."""

    folder: DataFolder
    there: Secured
    scratch: Path
    setenv: pytest.MonkeyPatch
    now: Callable[[], float] = time.time
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)

    def change(self, environ: Environ) -> None:
        for name, value in environ.items():
            if value is None:
                self.setenv.delenv(name, raising=False)
            else:
                self.setenv.setenv(name, value)

    @property
    def location(self) -> str:
        return location_of(self.folder.path)

    @property
    def settings(self) -> RelaySettings:
        return RelaySettings(
            service="relay",
            data=self.folder.path,
            token=self.folder.token(),
            deployment=self.folder.deployment(),
            drain_s=0.2,
            servers=Servers.read(os.environ, []),
            otel={name: value for name, value in os.environ.items() if name.startswith("OTEL_")},
            ttl_s=1,
            seal_s=0.05,
        )

    async def doctor(self) -> dict[str, list[Finding]]:
        """What it says of servers, by check."""
        checks = (doctor_servers.servers, doctor_servers.object_store, doctor_servers.history, doctor_servers.lines)

        def look() -> list[Finding]:
            found = [finding for check in checks for finding in check(self.folder.path, self.now)]
            return [*found, *doctor_servers.traces(self.folder.path)]

        # It has event loops of its own.
        found: dict[str, list[Finding]] = {}
        for one in await asyncio.to_thread(look):
            found.setdefault(one.check, []).append(one)
        return found

    @asynccontextmanager
    async def service(self, *, relays: bool = False) -> AsyncIterator[Service]:
        """One service with the parts of several: each has a part of its health."""
        settings, path = self.settings, self.folder.path / "telemetry.sqlite"
        past = PostgresHistory(os.environ[POSTGRES], max_events=10)
        async with (
            open_stores(settings) as stores,
            Service(settings) as service,
            ReadModel(path, Limits(), Changes(), past) as model,
        ):
            assert stores.servers is not None
            if relays:
                install_relay(service, settings, stores.servers)
            # Where they are refused from the beginning, a service does not start at all.
            stores.servers = replace(stores.servers, location=self.location, now=self.now)
            projector = Projector(
                open_event_store(deployment=settings.deployment), model, on_history=partial(service.report, "history")
            )
            store = ElasticSettings.read(os.environ, settings.deployment)
            assert store is not None
            lines = open_lines(service, model, store, retention_s=RETENTION_S, now=self.now)
            assert lines.clock is not None
            asks = {
                clocks.POSTGRES: clocks.of_postgres(os.environ[POSTGRES], self.now),
                clocks.ELASTICSEARCH: lines.clock,
            }
            service.background("stores", partial(stores.watch, service.report))
            service.background("projection", projector.run)
            service.background("clock watch", partial(clocks.watch, asks, partial(service.report, clocks.PART)))
            await service.start()
            with service.tracing.span("a span"):
                pass
            try:
                yield service
            finally:
                # While what its parts use is still open, as `run` does.
                await service.drain()


async def ill(service: Service) -> dict[str, str]:
    """What `/healthz` says of parts that are not well."""

    def ask() -> dict[str, dict[str, Any]]:
        with urllib.request.urlopen(f"http://{HOST}:{service.metrics_port}/healthz", timeout=10) as answer:
            return json.load(answer)["parts"]

    return {part: said["why"] for part, said in (await asyncio.to_thread(ask)).items() if said["why"]}


async def until_told(service: Service, said: Mapping[str, str]) -> dict[str, str]:
    """What parts say, once those of `said` say that and all others are well.

    A service that starts is not connected to NATS yet, and says that for a moment.
    """
    ends, told = time.monotonic() + WITHIN_S, dict[str, str]()
    while told.keys() != said.keys() or not all(re.search(words, told[part]) for part, words in said.items()):
        assert time.monotonic() < ends, told
        await asyncio.sleep(0.05)
        told = await ill(service)
    return told


async def until_well(service: Service) -> None:
    """Nothing is wrong any more."""
    ends = time.monotonic() + WITHIN_S
    while told := await ill(service):
        assert time.monotonic() < ends, told
        await asyncio.sleep(0.05)


@asynccontextmanager
async def jetstream(one: Deployment) -> AsyncIterator[NatsConnection]:
    access = one.settings.servers.nats
    connection = NatsConnection(
        NatsSettings(servers=access.addresses, user=access.user, password=access.password, ca_file=access.ca)
    )
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()
