"""A deployment's stores on etcd, NATS JetStream and segments in the store of objects; needs the extra `stack`.

What is wrong with a server is one text for `distroml doctor`, for the health of services and for who starts them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from distroml.eventstore import EventStoreError, StoreDown
from distroml.eventstore.etcd import Archive, EtcdEventStore, open_event_store
from distroml.eventstore.jetstream import JetStreamLog, JetStreamReader, NatsConnection, NatsSettings
from distroml.eventstore.relay.port import LogMoved
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore import ObjectStore, ObjectStoreError
from distroml.objectstore.later import LaterObjectStore
from distroml.objectstore.location import open_claimed, survey_location
from distroml.rpc.clockreading import Now
from distroml.rpc.serverclocks import clocks_trouble
from distroml.rpc.servers import Access, Servers
from distroml.rpc.settings import SettingsError
from distroml.statestore import StateStoreError
from distroml.statestore.etcd import EtcdClient, EtcdSettings, EtcdStateStore, open_state_store

ETCD: Final = "etcd"
NATS: Final = "nats"
OBJECTS: Final = "objects"
CLOCKS: Final = "clocks"

SILENCE_S: Final = 20.0
"""For how long the store of segments may be silent: each call holds a thread of the process, of which there are few."""
_SURVEY_S: Final = 60.0

_NO_SPACE = "NOSPACE"
_PROBE_KEY = "probe"
_CONNECTED_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class ServerStores:
    """What a deployment has on the servers.

    Attributes:
        events: the log and the state committed with it.
        state: keys, leases and watches.
        connection: to NATS; it comes and goes by itself.
        log: the recent part in JetStream, for readers.
        segments: all of it.
        location: of the objects that segments are.
        servers: where etcd and NATS are.
        now: this machine's clock, which theirs are compared with.
    """

    events: EtcdEventStore
    state: EtcdStateStore
    connection: NatsConnection
    log: JetStreamLog
    segments: SegmentLog
    location: str
    servers: Servers
    now: Now = time.time

    @property
    def looks(self) -> Mapping[str, Callable[[], Awaitable[str | None]]]:
        """For each server, what finds out why it does not serve this deployment: None where it does."""
        return {
            ETCD: lambda: _etcd_trouble(self.state),
            NATS: lambda: _nats_trouble(self.log),
            OBJECTS: lambda: _objects_trouble(self.location, self.log.log_id),
            CLOCKS: self._clocks_trouble,
        }

    async def _clocks_trouble(self) -> str | None:
        # The first look comes before NATS is connected, and the next one a minute later.
        with suppress(TimeoutError):
            async with asyncio.timeout(self.connection.settings.timeout_s):
                while not self.connection.is_connected:
                    await asyncio.sleep(_CONNECTED_AGAIN_S)
        return await clocks_trouble(self.servers.etcd, self.log, self.location, now=self.now)


async def open_on_servers(servers: Servers, deployment: str, location: str, closing: AsyncExitStack) -> ServerStores:
    """The stores of a deployment, closed with `closing`.

    Args:
        servers: where etcd and NATS are.
        deployment: its id, which keys, subjects and the stream's name begin with.
        location: of its objects.
        closing: what closes them.

    Raises:
        ObjectStoreRefused: the objects are another deployment's, or the server won't serve us.
        SettingsError: the settings of a client contradict one another.
    """
    try:
        etcd, nats = _etcd_settings(servers.etcd), _nats_settings(servers.nats)
    except (ValueError, OSError) as error:
        raise SettingsError([str(error)]) from error
    objects = await asyncio.to_thread(_open_objects, location, deployment)
    closing.callback(objects.close)
    connection = NatsConnection(nats)
    closing.push_async_callback(connection.close)
    keeping = asyncio.create_task(connection.keep(), name="NATS connection")
    closing.push_async_callback(_end, keeping)
    log = _log(connection, deployment)
    segments = SegmentLog(objects, deployment)
    state = open_state_store(EtcdClient(etcd), deployment)
    closing.push_async_callback(state.close)
    events = open_event_store(state, JetStreamReader(log), segments, Archive(objects, deployment))
    closing.push_async_callback(events.close)
    return ServerStores(events, state, connection, log, segments, location, servers)


async def survey(servers: Servers, deployment: str, now: Now = time.time) -> dict[str, str | None]:
    """What keeps etcd and NATS from serving this deployment, None where nothing does; writes nothing, takes seconds.

    Clocks of theirs that are apart are told besides: they keep nobody from serving.
    """
    # Every member is asked: a wrong one is found before a failover leads to it.
    members = (_survey_etcd(servers.etcd, address, deployment) for address in servers.etcd.addresses)
    (nats, apart), etcd = await asyncio.gather(_survey_nats(servers, deployment, now), asyncio.gather(*members))
    return {ETCD: next((trouble for trouble in etcd if trouble), None), NATS: nats, CLOCKS: apart}


async def _survey_etcd(access: Access, address: str, deployment: str) -> str | None:
    try:
        # Every call has a deadline of its own: this one is for a client that loses the answer.
        async with asyncio.timeout(_SURVEY_S):
            return await _ask_etcd(access, address, deployment)
    except TimeoutError:
        return f"etcd at {address} was asked {_SURVEY_S:.0f} s ago, and nothing came of it"


async def _ask_etcd(access: Access, address: str, deployment: str) -> str | None:
    try:
        settings = _etcd_settings(access, address)
    except (ValueError, OSError) as error:
        return str(error)
    state = open_state_store(EtcdClient(settings), deployment)
    try:
        return await _etcd_trouble(state)
    finally:
        await state.close()


async def _survey_nats(servers: Servers, deployment: str, now: Now) -> tuple[str | None, str | None]:
    """What is wrong with NATS, and with clocks."""
    try:
        async with asyncio.timeout(_SURVEY_S):
            return await _ask_nats(servers, deployment, now)
    except TimeoutError:
        return f"NATS, or etcd's clock, was asked {_SURVEY_S:.0f} s ago, and nothing came of it", None


async def _ask_nats(servers: Servers, deployment: str, now: Now) -> tuple[str | None, str | None]:
    try:
        connection = NatsConnection(_nats_settings(servers.nats))
    except (ValueError, OSError) as error:
        return str(error), None
    log = _log(connection, deployment)
    try:
        await connection.connect()
        return await _nats_trouble(log), await clocks_trouble(servers.etcd, log, now=now)
    except StoreDown as error:
        return str(error), await clocks_trouble(servers.etcd, log, now=now)
    finally:
        await connection.close()


async def _etcd_trouble(state: EtcdStateStore) -> str | None:
    try:
        await state.get(_PROBE_KEY)
        alarms = await state.client.alarms()
    except StateStoreError as error:
        return str(error)
    if any(_NO_SPACE in alarm for alarm in alarms):
        return (
            "etcd has reached its quota and takes no commit: compact and defragment it, or raise"
            " --quota-backend-bytes, then `etcdctl alarm disarm`"
        )
    return f"etcd complains: {'; '.join(alarms)}" if alarms else None


async def _nats_trouble(log: JetStreamLog) -> str | None:
    try:
        info = await log.info()
        if info is not None:
            log.incarnation(info)
    except (EventStoreError, LogMoved) as error:
        return str(error)
    return None


async def _objects_trouble(location: str, deployment: str) -> str | None:
    try:
        await asyncio.to_thread(survey_location, location, deployment)
    except ObjectStoreError as error:
        return str(error)
    return None


def _open_objects(location: str, deployment: str) -> ObjectStore:
    """Claimed for the deployment, by its first use where the server is silent: the log goes on without segments."""
    objects = LaterObjectStore(partial(open_claimed, location, deployment, silence_s=SILENCE_S))
    objects.open_if_there()
    return objects


def _etcd_settings(access: Access, *only: str) -> EtcdSettings:
    return EtcdSettings(
        endpoints=only or access.addresses,
        user=access.user,
        password=access.password,
        ca=access.ca.read_bytes() if access.ca else None,
        certificate=access.cert.read_bytes() if access.cert else None,
        key=access.key.read_bytes() if access.key else None,
    )


def _nats_settings(access: Access) -> NatsSettings:
    return NatsSettings(
        servers=access.addresses,
        user=access.user,
        password=access.password,
        ca_file=access.ca,
        cert_file=access.cert,
        key_file=access.key,
    )


def _log(connection: NatsConnection, deployment: str) -> JetStreamLog:
    """As readers have it: the relay alone makes the stream, and says how large it is."""
    return JetStreamLog(connection, deployment, keep_bytes=0)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
