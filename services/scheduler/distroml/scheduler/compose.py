"""Putting the scheduler together on stores that somebody else opened and closes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from distroml.api.common.v1.replay_pb2_grpc import add_ReplayServiceServicer_to_server
from distroml.api.scheduler.v1.jobs_pb2_grpc import add_JobServiceServicer_to_server
from distroml.api.scheduler.v1.nodes_pb2_grpc import add_NodeServiceServicer_to_server
from distroml.eventstore import EventStore, Guard
from distroml.objectstore import ObjectStore
from distroml.observability import logger
from distroml.rpc import Service
from distroml.rpc.clocks import Clocks
from distroml.rpc.replay import ReplayServicer, StreamKind
from distroml.scheduler.board import Board
from distroml.scheduler.cycle import Cycle
from distroml.scheduler.leadership import Leadership
from distroml.scheduler.liveness import Judge, NodeLeases
from distroml.scheduler.logs import Logs
from distroml.scheduler.nodes import NodeServer
from distroml.scheduler.past import Past
from distroml.scheduler.reactor import Reactor
from distroml.scheduler.retiring import JobRetirement
from distroml.scheduler.server import JobServer
from distroml.scheduler.settings import SchedulerSettings
from distroml.scheduler.signals import Pulse
from distroml.scheduler.streams import JOB_PREFIX, NODE_PREFIX, POOL_PREFIX, Streams
from distroml.statestore import StateStore

if TYPE_CHECKING:
    import grpc.aio

JOB_SERVICE = "distroml.api.scheduler.v1.JobService"
NODE_SERVICE = "distroml.api.scheduler.v1.NodeService"
REPLAY_SERVICE = "distroml.api.common.v1.ReplayService"
AGENTS_CLOCKS = "clocks of agents"
"""A part of the scheduler's health."""

log = logger(__name__)


def compose(
    service: Service,
    settings: SchedulerSettings,
    *,
    events: EventStore,
    state: StateStore,
    objects: ObjectStore,
    telemetry: grpc.aio.Channel | None,
) -> Board:
    """Add the scheduler's calls and background work to `service`; the board is returned for tests and metrics."""
    streams = Streams(events, settings.deployment)
    pulse = Pulse(state)
    board = Board(streams, pulse, finished_kept=settings.finished_kept)
    leases = NodeLeases(state, ttl_s=settings.node_ttl_s)

    jobs = JobServer(
        streams,
        board,
        pulse,
        objects,
        Logs(telemetry),
        Past(telemetry),
        max_unfinished=settings.max_unfinished,
        bundle_cap_bytes=settings.bundle_cap_bytes,
    )
    kinds = (
        StreamKind(JOB_PREFIX, streams.jobs),
        StreamKind(NODE_PREFIX, streams.nodes),
        StreamKind(POOL_PREFIX, streams.ledgers),
    )

    def tell_clocks(why: str | None) -> None:
        service.report(AGENTS_CLOCKS, why)
        log.warning("clocks are apart", why=why) if why else log.info("the agents' clocks are well again")

    nodes = NodeServer(streams, board, leases, Clocks("agents", tell_clocks), deployment=settings.deployment)
    replay = ReplayServicer(events, kinds, deployment=settings.deployment)
    service.add(add_JobServiceServicer_to_server, jobs, JOB_SERVICE)
    service.add(add_NodeServiceServicer_to_server, nodes, NODE_SERVICE)
    service.add(add_ReplayServiceServicer_to_server, replay, REPLAY_SERVICE)

    service.background("pulse", pulse.run)
    service.background("board", board.run)
    reactor = Reactor(streams, service.tracing, lambda why: service.report("reactor stream", why))
    retirement = JobRetirement(streams, board, after_s=settings.retire_after_s)

    async def react(guard: Guard) -> None:
        async with retirement.beside(guard):
            await reactor.run(guard)

    roles: dict[str, Callable[[Guard], Awaitable[None]]] = {
        "cycle": Cycle(
            streams, board, service.tracing, debounce_s=settings.debounce_s, silence_s=settings.silence_s
        ).run,
        "judge": Judge(streams, board, leases).run,
        "reactor": react,
    }
    for role, work in roles.items():
        leadership = Leadership(state, role, ttl_s=settings.role_ttl_s)
        service.background(role, lambda leadership=leadership, work=work: leadership.run(work))
    return board
