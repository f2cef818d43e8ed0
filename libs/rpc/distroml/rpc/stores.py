"""The one place that opens a service's stores: in its data folder, or on the servers that its settings name.

The clients of etcd, NATS and S3 (the extra `stack`) are imported only where their servers are used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from distroml.eventstore import EventStore
from distroml.eventstore.sqlite import open_event_store
from distroml.objectstore import ObjectStore, ObjectStoreRefused
from distroml.objectstore.later import LaterObjectStore
from distroml.objectstore.location import open_claimed
from distroml.rpc.measured import MeasuredEventStore
from distroml.rpc.settings import ServiceSettings, SettingsError
from distroml.statestore import StateStore
from distroml.statestore.sqlite import open_state_store

if TYPE_CHECKING:
    from distroml.rpc.serverstores import ServerStores

LOOK_S: Final = 5.0
"""How often the servers are looked at for the service's health, seconds."""

CLOCKS_S: Final = 60.0
"""How often their clocks are."""

EMBEDDED_S: Final = 1.0
"""How often an embedded store is."""

STORE: Final = "store"
"""The part of health that says whether an embedded store takes what this service writes."""

OBJECTS: Final = "objects"
"""The part of health that says why the store of objects does not serve us; on servers it has it all the time."""

Look = Callable[[], Awaitable[str | None]]
Report = Callable[[str, str | None], None]
"""Told the name of a server, and why it does not serve us (None: it does)."""


class Stores:
    """A service's stores, open until the block of `open_stores` ends.

    Attributes:
        events: the log and the state committed with it.
        state: keys, leases and watches of the same deployment.
        servers: the same on etcd and NATS, None where all is embedded.
    """

    def __init__(
        self,
        events: EventStore,
        state: StateStore,
        objects: Callable[[], ObjectStore],
        servers: ServerStores | None = None,
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        """The stores of a service.

        Args:
            events: see above.
            state: see above.
            objects: opens the store of objects, claimed for this deployment.
            servers: see above.
            trouble: says why an embedded store did not take the last write; empty where it did.
        """
        self.events, self.state, self.servers = events, state, servers
        self._trouble = trouble
        self._open_objects = objects
        self._objects: LaterObjectStore | None = None

    @property
    def objects(self) -> ObjectStore:
        """The store of objects; one that is silent now is opened when it is used, as soon as it answers.

        Raises:
            ObjectStoreRefused: it won't serve us.
        """
        if self._objects is None:
            self._objects = LaterObjectStore(self._open_objects)
            if self.servers is None:
                # On servers segments are in the same place, and it was asked already.
                self._objects.open_if_there()
        return self._objects

    async def watch(self, report: Report) -> None:
        """Tell for ever which server does not serve us, and why; where all is embedded, why it takes no write."""

        async def embedded() -> str | None:
            return self._trouble() or None

        async def watch_one(part: str, look: Look, every_s: float) -> None:
            while True:
                report(part, await look())
                await asyncio.sleep(every_s)

        # Each for itself: one that is silent holds up no word of the others.
        async with asyncio.TaskGroup() as watching:
            if self.servers is None:
                watching.create_task(watch_one(STORE, embedded, EMBEDDED_S))
                if self._objects is not None and not self._objects.opened:
                    watching.create_task(self._open_later(self._objects, report))
                return
            for part, look in self.servers.looks.items():
                watching.create_task(watch_one(part, look, CLOCKS_S if part == "clocks" else LOOK_S))

    async def _open_later(self, objects: LaterObjectStore, report: Report) -> None:
        """Tell why the store of objects cannot be opened, until it can."""
        while True:
            try:
                trouble = await asyncio.to_thread(objects.open_if_there)
            except ObjectStoreRefused as error:
                trouble = str(error)
            report(OBJECTS, trouble)
            if trouble is None:
                return
            await asyncio.sleep(LOOK_S)

    def close_objects(self) -> None:
        """Close the store of objects where it was opened."""
        if self._objects is not None:
            self._objects.close()


@asynccontextmanager
async def open_stores(settings: ServiceSettings, *, create: bool = True) -> AsyncGenerator[Stores]:
    """The deployment's stores, closed with the block: enter it before the service's own, which uses them to its end.

    Nothing is asked of etcd or NATS yet, and S3 is waited for only for seconds: a service starts while they are away,
    and says so in its health.

    Args:
        settings: of the service.
        create: whether embedded stores are made where they are absent; a reader of the log makes none.

    Raises:
        StoreDown, StoreDamaged, StoreFull: an embedded store cannot be opened.
        SettingsError: a client is not installed, or the settings contradict one another.
        ObjectStoreRefused: the servers' log has its segments in a store of objects that won't serve us.
    """

    def objects() -> ObjectStore:
        return open_claimed(settings.objects_location, settings.deployment)

    async with AsyncExitStack() as closing:
        if settings.servers is not None:
            stores = await _on_servers(settings, objects, closing)
        else:
            path = settings.data / "control.sqlite"
            events = open_event_store(path, create=create, deployment=settings.deployment)
            closing.push_async_callback(events.close)
            state = open_state_store(path, create=create, deployment=settings.deployment)
            closing.push_async_callback(state.close)
            stores = Stores(MeasuredEventStore(events), state, objects, trouble=lambda: events.database.trouble)
        closing.callback(stores.close_objects)
        yield stores


async def _on_servers(settings: ServiceSettings, objects: Callable[[], ObjectStore], closing: AsyncExitStack) -> Stores:
    assert settings.servers is not None
    try:
        from distroml.rpc import serverstores
    except ModuleNotFoundError as error:
        raise SettingsError(
            [f"etcd and NATS need the package {error.name}, which is not installed: pip install 'distroml[stack]'"]
        ) from error
    found = await serverstores.open_on_servers(
        settings.servers, settings.deployment, settings.objects_location, closing
    )
    return Stores(MeasuredEventStore(found.events), found.state, objects, found)
