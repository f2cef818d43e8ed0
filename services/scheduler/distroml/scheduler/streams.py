"""The scheduler's streams on one store: loading them, and committing what was decided over several of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from distroml.events import Context, Position, stream
from distroml.eventstore import EventStore, Guard
from distroml.eventstore.draft import AnyDraft, Draft, Repository
from distroml.eventstore.handle import CommandKey, Outcome, Unit, transact
from distroml.rpc import caller
from distroml.scheduler import metrics
from distroml.scheduler.adapters import codecs
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as node_module
from distroml.scheduler.domain import spec as spec_module
from distroml.scheduler.domain.job import JOB, Job
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.job import state as job_state_module
from distroml.scheduler.domain.ledger import LEDGER, Ledger
from distroml.scheduler.domain.ledger import state as ledger_state_module
from distroml.scheduler.domain.node import NODE, Node
from distroml.scheduler.domain.plan import Step

JOB_PREFIX: Final = "scheduler/job/"
NODE_PREFIX: Final = "scheduler/node/"
POOL_PREFIX: Final = "scheduler/pool/"
POOL: Final = stream("scheduler", "pool", "default")

JobDraft = Draft[Job, c.Command, e.Event]
NodeDraft = Draft[Node, node_module.Command, node_module.Event]
LedgerDraft = Draft[Ledger, pool.Command, pool.Event]

S = TypeVar("S")
C = TypeVar("C")
E = TypeVar("E")


def job_stream(job: str) -> str:
    """The stream of a job."""
    return stream("scheduler", "job", job)


def node_stream(node: str) -> str:
    """The stream of a node."""
    return stream("scheduler", "node", node)


def now_ms() -> int:
    """The wall clock, for people; decisions about liveness are made on the monotonic one."""
    return time.time_ns() // 1_000_000


class Streams:
    """Repositories of the three kinds of stream, and the one way to commit on them."""

    def __init__(self, store: EventStore, deployment: str) -> None:
        self.store, self.deployment = store, deployment
        modules = (job_state_module, spec_module)
        self.jobs: Repository[Job, c.Command, e.Event] = Repository(
            store, JOB, codecs.JOB_EVENTS, codecs.JOB_STATE, modules
        )
        self.nodes: Repository[Node, node_module.Command, node_module.Event] = Repository(
            store, NODE, codecs.NODE_EVENTS, codecs.NODE_STATE, (node_module, spec_module)
        )
        self.ledgers: Repository[Ledger, pool.Command, pool.Event] = Repository(
            store, LEDGER, codecs.POOL_EVENTS, codecs.LEDGER_STATE, (ledger_state_module, spec_module)
        )

    async def job(self, job: str) -> JobDraft:
        """The committed state of a job."""
        return await self.jobs.load(job_stream(job))

    async def position(self) -> Position:
        """A position that every state loaded from now on includes."""
        return await self.store.head()

    def context(self, *, project: str = "", causation_id: str = "", generation: int = 0) -> Context:
        """The context of a commit made for whoever is calling now."""
        return caller().context(
            deployment=self.deployment,
            time_ms=now_ms(),
            project=project,
            causation_id=causation_id,
            generation=generation,
        )

    async def transact(
        self, decide: Callable[[Load], Awaitable[Unit]], *, context: Context, command: CommandKey | None = None
    ) -> Outcome:
        """Decide on what `decide` loads, commit, and again where somebody else was faster.

        Raises:
            Rejection, WrongExpectedVersion, Fenced, CommitRefused, StoreFull, StoreDown: as `handle.transact`.
        """
        tries = 0

        async def once() -> Unit:
            nonlocal tries
            tries += 1
            return await decide(Load(self, check=tries > 1))

        outcome = await transact(self.store, once, context=context, command=command)
        metrics.count(outcome.events)
        return outcome

    async def commit_steps(self, steps: Iterable[Step], *, context: Context, guards: tuple[Guard, ...] = ()) -> Outcome:
        """Commit the commands of a plan's steps, all or none; raises as `transact`."""
        planned = tuple(steps)

        async def decide(load: Load) -> Unit:
            drafts: dict[str, AnyDraft] = {}
            for step in planned:
                await _decide_step(load, step, drafts)
            return Unit(drafts=tuple(drafts.values()), guards=guards)

        return await self.transact(decide, context=context)


class Load:
    """Loads drafts for one try of a decision.

    State whose stored parts do not match its stream's version would lose every race; after a lost one this is
    checked, and such a stream folded again.
    """

    def __init__(self, streams: Streams, *, check: bool) -> None:
        self._streams, self._check = streams, check

    async def job(self, job: str) -> JobDraft:
        """A job."""
        return await self._load(self._streams.jobs, job_stream(job))

    async def node(self, node: str) -> NodeDraft:
        """A node."""
        return await self._load(self._streams.nodes, node_stream(node))

    async def ledger(self) -> LedgerDraft:
        """The ledger."""
        return await self._load(self._streams.ledgers, POOL)

    async def _load(self, repository: Repository[S, C, E], name: str) -> Draft[S, C, E]:
        draft = await repository.load(name)
        if self._check and draft.version != await self._streams.store.version(name):
            return await repository.load(name, refold=True)
        return draft


async def _decide_step(load: Load, step: Step, drafts: dict[str, AnyDraft]) -> None:
    if step.job_commands:
        key = job_stream(step.job)
        draft = drafts.get(key) or await load.job(step.job)
        for command in step.job_commands:
            draft = draft.decide(command)
        drafts[key] = draft
    if step.node_commands:
        key = node_stream(step.node)
        draft = drafts.get(key) or await load.node(step.node)
        for command in step.node_commands:
            draft = draft.decide(command)
        drafts[key] = draft
    if step.ledger_commands:
        draft = drafts.get(POOL) or await load.ledger()
        for command in step.ledger_commands:
            draft = draft.decide(command)
        drafts[POOL] = draft
