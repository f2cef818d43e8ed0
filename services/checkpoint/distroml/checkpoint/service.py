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
from distroml.checkpoint.retiring import retirement
from distroml.checkpoint.server import CheckpointServer
from distroml.checkpoint.settings import CheckpointSettings
from distroml.events import fresh_id
from distroml.rpc import Service, Stores
from distroml.rpc.replay import ReplayServicer, StreamKind


def compose(service: Service, settings: CheckpointSettings, stores: Stores) -> Catalogues:
    """Give `service` its servicers and reactor."""
    events, keys = stores.events, stores.state
    catalogues_of = repository(events)
    catalogues = Catalogues(
        catalogues_of,
        Fences(keys, events),
        Objects(stores.objects),
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
    retiring = retirement(catalogues_of, after_s=settings.retire_after_s)
    keeper = Keeper(
        events, keys, catalogues, retiring, service.tracing, holder=fresh_id("keeper"), ttl_s=settings.reactor_ttl_s
    )
    service.background("keeper", keeper.run)
    return catalogues
