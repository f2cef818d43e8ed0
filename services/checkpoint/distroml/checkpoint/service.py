"""The service put together."""

from __future__ import annotations

import time

from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import add_CheckpointServiceServicer_to_server
from distroml.api.common.v1.replay_pb2_grpc import add_ReplayServiceServicer_to_server
from distroml.checkpoint.adapters.codecs import STREAMS, repository
from distroml.checkpoint.adapters.fence import Fences
from distroml.checkpoint.catalogues import Catalogues
from distroml.checkpoint.objects import Objects
from distroml.checkpoint.reactor import Keeper
from distroml.checkpoint.server import CheckpointServer
from distroml.checkpoint.settings import CheckpointSettings
from distroml.events import fresh_id
from distroml.eventstore.sqlite import open_event_store
from distroml.objectstore.filesystem import open_object_store
from distroml.rpc import Service
from distroml.rpc.replay import ReplayServicer, StreamKind
from distroml.statestore.sqlite import open_state_store


def compose(service: Service, settings: CheckpointSettings) -> Catalogues:
    """Give `service` its stores, servicers and reactor."""
    database = settings.data / "control.sqlite"
    events = open_event_store(database, deployment=settings.deployment)
    service.on_close(events.close)
    keys = open_state_store(database, deployment=settings.deployment)
    service.on_close(keys.close)
    objects = open_object_store(settings.data / "objects")
    service.on_close(objects.close)
    catalogues_of = repository(events)
    catalogues = Catalogues(
        catalogues_of,
        Fences(keys),
        Objects(objects),
        deployment=settings.deployment,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    service.add(
        add_CheckpointServiceServicer_to_server,
        CheckpointServer(catalogues, keep=settings.keep),
        "distroml.api.checkpoint.v1.CheckpointService",
    )
    service.add(
        add_ReplayServiceServicer_to_server,
        ReplayServicer(events, [StreamKind(STREAMS, catalogues_of)], deployment=settings.deployment),
        "distroml.api.common.v1.ReplayService",
    )
    keeper = Keeper(events, keys, catalogues, holder=fresh_id("keeper"), ttl_s=settings.reactor_ttl_s)
    service.background("keeper", keeper.run)
    return catalogues
