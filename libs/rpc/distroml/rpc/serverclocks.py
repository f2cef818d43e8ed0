"""The clocks of a deployment's servers, each asked in its own way; whose is not known is passed over.

Needs the extra `stack`. PostgreSQL's is read where its database is looked at (`distroml.rpc.postgres`), Elasticsearch's
by its client (`distroml.logstore.elastic`).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from nats.errors import Error as NatsError

from distroml.eventstore import StoreDown
from distroml.eventstore.jetstream import JetStreamLog
from distroml.rpc.clockreading import Now, Reading, of_http, of_objects, read
from distroml.rpc.clocks import troubles
from distroml.rpc.servers import Access
from distroml.statestore.etcd.settings import target

_ETCD: Final = "etcd"
_NATS: Final = "nats"
_OBJECTS: Final = "objects"


async def clocks_trouble(etcd: Access, log: JetStreamLog, objects: str = "", *, now: Now = time.time) -> str | None:
    """Whose clock is far off this machine's: of etcd's members, NATS, and S3 where a location of objects is given."""
    asked = (asyncio.to_thread(of_http, version_page(one), _tls(etcd), now) for one in etcd.addresses)
    nats, s3, *members = await asyncio.gather(
        _clock_of_nats(log, now), asyncio.to_thread(of_objects, objects, now), *asked
    )
    return troubles(
        (
            (_NATS, "NATS", nats),
            *((_ETCD, f"etcd at {address}", one) for address, one in zip(etcd.addresses, members, strict=True)),
            (_OBJECTS, "the store of objects", s3),
        )
    )


def version_page(address: str) -> str:
    """What a member of etcd answers by HTTP beside its API, at the port that the API has."""
    return f"{urlsplit(address).scheme}://{target(address)}/version"


async def _clock_of_nats(log: JetStreamLog, now: Now) -> Reading | None:
    """By what JetStream says of our stream, which has the time of the answer; None before there is one."""
    try:
        client, before_s = log.connection.client, now()
        answer = await client.request(f"$JS.API.STREAM.INFO.{log.name}", timeout=log.connection.settings.timeout_s)
        said = json.loads(answer.data).get("ts")
        return read(datetime.fromisoformat(said).timestamp(), before_s, now()) if said else None
    except (TimeoutError, StoreDown, NatsError, ValueError):
        return None


def _tls(access: Access) -> ssl.SSLContext | None:
    """For HTTP beside etcd's own API; unreadable files are told where they are used for that one."""
    if access.ca is None and access.cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.cert is not None:
            context.load_cert_chain(access.cert, access.key)
    except OSError:
        return None
    return context
