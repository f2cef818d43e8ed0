"""Puts the relay together on a server's life: it works under a lease, and tells how it goes."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from distroml.events import fresh_id
from distroml.eventstore import EventStoreError
from distroml.eventstore.jetstream import JetStreamLog
from distroml.eventstore.relay.core import SealPolicy
from distroml.eventstore.relay.lease import under_lease
from distroml.eventstore.relay.relay import Relay
from distroml.observability import logger, names
from distroml.observability.metrics import gauge
from distroml.relay.domain.lag import Lag
from distroml.relay.publishing import TracedLog
from distroml.relay.settings import RelaySettings
from distroml.rpc import Service
from distroml.rpc.leases import lease_held
from distroml.rpc.serverstores import ServerStores

log = logger(__name__)

LEASE: Final = "leases/relay"
LOOK_S: Final = 1.0

_WORKS = gauge(names.RELAY_WORKS, "Whether this replica holds the lease and fills the log (1) or waits for it (0).")
_PUBLISHED = gauge(names.RELAY_PUBLISHED, "Every commit up to this revision is in JetStream; 0 where it waits.")
_SEALED = gauge(names.RELAY_SEALED, "Every commit up to this revision is in segments; 0 where it waits.")
_OUTBOX = gauge(names.RELAY_OUTBOX, "Commits that the outbox holds until the log and segments have them.")
_LAG = gauge(names.RELAY_LAG_SECONDS, "For how long a commit has waited to be in JetStream, seconds.")


class RelayProcess:
    """One replica of the relay."""

    def __init__(self, service: Service, settings: RelaySettings, stores: ServerStores) -> None:
        self._service, self._settings, self._stores = service, settings, stores
        self._log = JetStreamLog(
            stores.connection, settings.deployment, keep_bytes=settings.keep_bytes, replicas=settings.replicas
        )
        self._relay: Relay | None = None
        self._lag = Lag()
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Wait for the lease and relay under it, until cancelled; the lease is given up then."""
        await under_lease(
            self._stores.state, LEASE, holder=fresh_id("relay"), ttl_s=self._settings.ttl_s, work=self._work
        )

    async def tell(self) -> None:
        """Look after the outbox and tell health and metrics for ever."""
        while True:
            try:
                await self._look()
            except EventStoreError as error:
                # etcd has a part of its own in health; here it is only not known how long the outbox is.
                log.debug("the outbox cannot be looked at", why=str(error))
            await asyncio.sleep(LOOK_S)

    async def _work(self) -> None:
        settings, stores = self._settings, self._stores
        policy = SealPolicy(bytes=settings.seal_bytes, age_s=settings.seal_s)
        log_ = TracedLog(self._log, self._log.name, self._service.tracing)
        relay = Relay(stores.events.outbox, log_, stores.segments, reload_bytes=settings.reload_bytes, policy=policy)
        log.info("this replica fills the log now")
        self._relay, self._lag = relay, Lag()
        try:
            with lease_held(LEASE):
                await relay.run()
        finally:
            self._relay = None
            log.info("this replica fills the log no longer")

    async def _look(self) -> None:
        relay = self._relay
        self._report(relay.trouble if relay else {})
        _WORKS.set(relay is not None)
        _PUBLISHED.set(relay.published if relay else 0)
        _SEALED.set(relay.sealed if relay else 0)
        now_s = time.monotonic()
        _LAG.set(self._lag.seconds(now_s))
        _OUTBOX.set(await self._stores.events.outbox.count())
        if relay is not None:
            head = (await self._stores.events.head()).revision
            self._lag = self._lag.looked(head, relay.published, time.monotonic())
        else:
            self._lag = Lag()

    def _report(self, trouble: dict[str, str]) -> None:
        for part in self._told.keys() | trouble.keys():
            why = trouble.get(part)
            if why != self._told.get(part):
                self._service.report(part, why)
                log.warning("the log is not filled", part=part, why=why) if why else log.info("it goes on", part=part)
        self._told = dict(trouble)


def install(service: Service, settings: RelaySettings, stores: ServerStores) -> None:
    """Relay beside the health checks of `service`."""
    process = RelayProcess(service, settings, stores)
    service.background("relay", process.run)
    service.background("look", process.tell)
