"""One agent's stream: what it must be sent, and what follows from what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from distroml.api.scheduler.v1 import nodes_pb2 as pb
from distroml.events import Rejection, is_name
from distroml.eventstore.handle import CommandKey, Unit
from distroml.observability import logger
from distroml.scheduler.adapters.messages import category_of, desired_message, slots_of
from distroml.scheduler.board import Board
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as nodes
from distroml.scheduler.domain.desired import DesiredAttempt, desired
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.node import NodeState
from distroml.scheduler.liveness import NodeLeases
from distroml.scheduler.streams import Load, Streams, now_ms

log = logger(__name__)

MAX_TEXT_CHARS: Final = 4000

AttemptKey = tuple[str, int]


class Session:
    """Lives as long as the stream; everything that must outlive it is committed before it is acknowledged."""

    def __init__(self, streams: Streams, board: Board, leases: NodeLeases, hello: pb.NodeHello) -> None:
        self._streams, self._board, self._leases, self._hello = streams, board, leases, hello
        self._sent: tuple[int, tuple[DesiredAttempt, ...]] | None = None
        self._foreign: set[AttemptKey] = set()
        self._acks: list[str] = []
        self.woken = asyncio.Event()
        self.replaced = False

    @property
    def node(self) -> str:
        """The node's name."""
        return self._hello.node

    @property
    def boot_id(self) -> str:
        """The boot of the machine that the agent runs in."""
        return self._hello.boot_id

    # ---- down

    def news(self) -> list[pb.ConnectResponse]:
        """What the agent has not been told yet."""
        found: list[pb.ConnectResponse] = []
        if self._acks:
            found.append(pb.ConnectResponse(ack=pb.ObservationAck(observation_ids=self._acks)))
            self._acks = []
        attempts = desired(self._board.ledger, self._board.jobs, self.node)
        if self._sent is None or self._sent[1] != attempts:
            revision = self._board.position.revision
            self._sent = revision, attempts
            found.append(pb.ConnectResponse(desired=desired_message(revision, attempts)))
        return found

    # ---- up

    async def greet(self) -> None:
        """Let the node live, and take it into the pool once nothing runs on it that it should not run."""
        await self._leases.renew(self.node, self._hello.agent_id)
        await self._board.refresh()
        ledger = self._board.ledger
        for told in self._hello.attempts:
            holding = ledger.holding(told.job, told.attempt)
            is_over = told.phase == pb.ATTEMPT_PHASE_STOPPED
            if not is_over and (holding is None or holding.share(self.node) is None):
                self._foreign.add((told.job, told.attempt))
        if self._foreign:
            names = [f"{job}.{attempt}" for job, attempt in sorted(self._foreign)]
            log.warning(
                "a node came back with attempts that are over; it ends them first", node=self.node, attempts=names
            )
        else:
            await self._connect()
        for told in self._hello.attempts:
            await self.observe(told)

    async def heartbeat(self, heartbeat: pb.NodeHeartbeat) -> None:
        """Renew the node's lease; what is applied frees what is no longer named."""
        await self._leases.renew(self.node, self._hello.agent_id)
        # Only the newest state counts: of an older one nobody knows whether it ever was wholly so.
        if self._sent is not None and heartbeat.applied_revision >= self._sent[0]:
            await self._note_left(self._sent[1])
            self._foreign.clear()
        node = self._board.nodes.get(self.node)
        if not self._foreign and (node is None or node.state is NodeState.LOST):
            await self._connect()

    async def observe(self, told: pb.AttemptObservation) -> None:
        """Commit what the agent saw of an attempt, then acknowledge it."""
        try:
            await self._record(told)
        except Rejection as rejection:
            # Nothing will ever make it acceptable: the agent may forget it.
            log.warning("an observation was refused", node=self.node, job=told.job, why=str(rejection))
        if told.phase == pb.ATTEMPT_PHASE_STOPPED:
            self._foreign.discard((told.job, told.attempt))
        if told.observation_id:
            self._acks.append(told.observation_id)
            self.woken.set()

    async def _record(self, told: pb.AttemptObservation) -> None:
        at, job, attempt = now_ms(), told.job, told.attempt

        async def decide(load: Load) -> Unit:
            if told.phase == pb.ATTEMPT_PHASE_STOPPED:
                stopped = pool.NoteStopped(job=job, attempt=attempt, node=self.node)
                return Unit(((await load.ledger()).decide(stopped),))
            draft = await load.job(job)
            if told.phase == pb.ATTEMPT_PHASE_FAILED:
                failed = c.FailAttempt(
                    at_ms=at,
                    attempt=attempt,
                    node=self.node,
                    category=category_of(told.category),
                    message=told.message[:MAX_TEXT_CHARS],
                )
                return Unit((draft.decide(failed),))
            progress = c.Progress(at_ms=at, attempt=attempt, step=told.step, total_steps=told.total_steps)
            return Unit((draft.decide(progress),) if told.step > 0 else ())

        is_durable = told.phase in (pb.ATTEMPT_PHASE_STOPPED, pb.ATTEMPT_PHASE_FAILED) and told.observation_id
        key = CommandKey(f"observations/{self.node}/{told.observation_id}", told.SerializeToString(deterministic=True))
        context = self._streams.context(causation_id=told.observation_id)
        await self._streams.transact(decide, context=context, command=key if is_durable else None)

    async def _note_left(self, applied: Sequence[DesiredAttempt]) -> None:
        """Slots that left a gang and that the applied state does not name have no process any more."""
        named = {(one.job, one.attempt): one.slots for one in applied}
        commands = [
            pool.NoteLeft(job=holding.job, attempt=holding.attempt, node=self.node, slots=left)
            for holding in self._board.ledger.holdings.values()
            if (share := holding.share(self.node)) is not None and share.slots
            if (left := tuple(s for s in share.leaving if s not in named.get((holding.job, holding.attempt), (s,))))
        ]
        if commands:

            async def decide(load: Load) -> Unit:
                ledger = await load.ledger()
                for command in commands:
                    ledger = ledger.decide(command)
                return Unit((ledger,))

            await self._streams.transact(decide, context=self._streams.context())

    async def _connect(self) -> None:
        hello = self._hello
        command = nodes.Connect(
            at_ms=now_ms(),
            node=hello.node,
            boot_id=hello.boot_id,
            agent_id=hello.agent_id,
            slots=slots_of(hello.slots),
            address=hello.address,
            labels=dict(hello.labels),
        )

        async def decide(load: Load) -> Unit:
            node, ledger = (await load.node(hello.node)).decide(command), await load.ledger()
            ledger = ledger.decide(pool.OfferSlots(node=hello.node, slots=node.state.slots))
            if node.state.cordoned:
                ledger = ledger.decide(pool.WithdrawNode(node=hello.node, lost=False))
            return Unit((node, ledger))

        await self._streams.transact(decide, context=self._streams.context())
        await self._board.refresh()


def refused_hello(hello: pb.NodeHello) -> list[tuple[str, str]]:
    """Everything that is wrong with a hello."""
    wrong: list[tuple[str, str]] = []
    if not is_name(hello.node):
        wrong.append(("hello.node", f"{hello.node[:80]!r} is no name of a node"))
    ids = [slot.id for slot in hello.slots]
    if not ids or len(set(ids)) != len(ids) or not all(ids):
        wrong.append(("hello.slots", "must name at least one slot, each under an id of its own"))
    for field in ("boot_id", "agent_id"):
        if not getattr(hello, field):
            wrong.append((f"hello.{field}", "is empty"))
    return wrong
