"""Puts the parts of rendezvous together on a server's life."""

from __future__ import annotations

from distroml.api.common.v1 import replay_pb2_grpc
from distroml.api.rendezvous.v1 import rendezvous_pb2_grpc
from distroml.eventstore import EventStore
from distroml.rendezvous.adapters.codec import STREAM_PREFIX, repository
from distroml.rendezvous.feed import follow
from distroml.rendezvous.jobs import Jobs
from distroml.rendezvous.judge import Judge
from distroml.rendezvous.retiring import retirement
from distroml.rendezvous.server import RendezvousServer
from distroml.rendezvous.settings import RendezvousSettings
from distroml.rpc import Service
from distroml.rpc.replay import ReplayServicer, StreamKind
from distroml.statestore import StateStore


def install(service: Service, settings: RendezvousSettings, events: EventStore, states: StateStore) -> Jobs:
    """Serve RendezvousService and ReplayService from these stores, and judge memberships."""
    jobs = Jobs(repository(events), settings.deployment, service.tracing)
    ttl_s = settings.member_ttl_s
    service.add(
        rendezvous_pb2_grpc.add_RendezvousServiceServicer_to_server,
        RendezvousServer(states, jobs, lease_ttl_s=ttl_s),
        "distroml.api.rendezvous.v1.RendezvousService",
    )
    service.add(
        replay_pb2_grpc.add_ReplayServiceServicer_to_server,
        ReplayServicer(events, [StreamKind(STREAM_PREFIX, jobs.repository)], deployment=settings.deployment),
        "distroml.api.common.v1.ReplayService",
    )
    service.background("feed", lambda: follow(states, jobs))
    retiring = retirement(jobs.repository, after_s=settings.retire_after_s)
    service.background("judge", Judge(events, states, jobs, retiring, ttl_s=ttl_s).run)
    service.on_drain(jobs.close)
    return jobs
