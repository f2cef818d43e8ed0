"""Nodes: their leases, and the judge that declares them lost."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from distroml.eventstore import Fenced, Guard
from distroml.eventstore.handle import Unit
from distroml.observability import logger
from distroml.rpc import calling, system_caller
from distroml.scheduler.board import Board
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as nodes
from distroml.scheduler.domain.node import NodeState
from distroml.scheduler.streams import Load, Streams, now_ms
from distroml.statestore import CasConflict, LeaseGone, StateStore

log = logger(__name__)

LEASES: Final = "leases/nodes/"
TICK_S: Final = 1.0


class NodeLeases:
    """The key `leases/nodes/<node>` lives as long as its agent's heartbeats reach any replica."""

    def __init__(self, state: StateStore, *, ttl_s: int) -> None:
        self._state, self.ttl_s = state, ttl_s

    async def renew(self, node: str, agent_id: str) -> None:
        """Let the node live for another ttl."""
        key, value = LEASES + node, agent_id.encode()
        while True:
            entry = await self._state.get(key)
            try:
                if entry is not None and entry.lease and entry.value == value:
                    await self._state.keep_alive(entry.lease)
                    return
                lease = await self._state.grant(self.ttl_s)
                await self._state.cas(key, value, expected=entry.revision if entry else 0, lease=lease)
                return
            except (LeaseGone, CasConflict):
                continue

    async def alive(self) -> frozenset[str]:
        """Nodes whose lease lives."""
        listing = await self._state.list(LEASES)
        return frozenset(entry.key.removeprefix(LEASES) for entry in listing.entries)


class Judge:
    """Declares nodes lost whose lease is gone, under the lease of its role.

    One that has just begun, or that stood still for a third of a ttl, first gives every node a full ttl: its agent
    may not have had anybody to talk to.
    """

    def __init__(self, streams: Streams, board: Board, leases: NodeLeases, *, tick_s: float = TICK_S) -> None:
        self._streams, self._board, self._leases, self._tick_s = streams, board, leases, tick_s

    async def run(self, guard: Guard) -> None:
        """Until cancelled; raises `Fenced` where another replica took over."""
        ttl_s = self._leases.ttl_s
        last = time.monotonic()
        patient_until = last + ttl_s
        with calling(system_caller(actor="scheduler-judge")):
            while True:
                await asyncio.sleep(self._tick_s)
                now = time.monotonic()
                if now - last > self._tick_s + ttl_s / 3:
                    log.warning("stood still; every node gets a full lease first", seconds=round(now - last, 1))
                    patient_until = now + ttl_s
                last = now
                if now >= patient_until:
                    await self._judge(guard)

    async def _judge(self, guard: Guard) -> None:
        present = [name for name, node in self._board.nodes.items() if node.state is not NodeState.LOST]
        alive = await self._leases.alive()
        for name in sorted(set(present) - alive):
            await self._lose(name, guard)

    async def _lose(self, name: str, guard: Guard) -> None:
        message = f"nothing was heard of its agent for {self._leases.ttl_s} s"

        async def decide(load: Load) -> Unit:
            node, ledger = await load.node(name), await load.ledger()
            # An agent that came back this moment is not lost: its lease must still be absent at the commit.
            guards = (guard, Guard(LEASES + name, revision=0))
            lost = node.decide(nodes.Lose(at_ms=now_ms(), message=message))
            return Unit((lost, ledger.decide(pool.WithdrawNode(node=name, lost=True))), guards=guards)

        try:
            await self._streams.transact(decide, context=self._streams.context())
        except Fenced as fenced:
            if fenced.key == guard.key:
                raise
            log.info("a node came back at the last moment", node=name)
        else:
            log.warning("a node is lost", node=name)
