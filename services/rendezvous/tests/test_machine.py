"""Random commands through the store: what holds for every history."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rendezvous_words import JOB, exited, gang, join, leave, lost, ready

from distroml.events import Rejection
from distroml.eventstore import memory as event_memory
from distroml.eventstore.replay import verify
from distroml.observability.tracing import Tracing
from distroml.rendezvous import domain as d
from distroml.rendezvous.adapters.codec import EVENTS, STATE, repository, stream_of
from distroml.rendezvous.adapters.keys import fence_key
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.job import Job
from distroml.rpc import system_caller
from distroml.statestore.memory import MemoryDatabase

NODES = st.sampled_from("abc")
GANGS = st.sampled_from([gang(a=1, b=1), gang(a=2, b=1), gang(a=1, b=1, c=1), gang(c=2)])
STREAM = stream_of(JOB)


class Histories(RuleBasedStateMachine):
    """Any agent says anything at any time; the job's own actor decides and commits."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runner.run(self._open())
        self.attempt = 1
        self.newest = 0
        self.formed: set[int] = set()
        self.read = 0

    async def _open(self) -> None:
        self.store = event_memory.open_event_store(MemoryDatabase("dep-1", sweep=False), deployment="dep-1")
        self.repository = repository(self.store)
        self.job = Job(JOB, self.repository, "dep-1", Tracing("rendezvous"))
        self.running = asyncio.create_task(self.job.run())

    def teardown(self) -> None:
        async def close() -> None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
            await self.store.close()

        self.runner.run(close())
        self.runner.close()

    @property
    def state(self) -> d.Rendezvous:
        return self.job.state

    def send(self, *commands: d.Command) -> None:
        async def submit() -> None:
            asked = [self.job.submit(command, system_caller()) for command in commands]
            for one in asked:
                with suppress(Rejection):
                    await one

        self.runner.run(submit())

    @rule(node=NODES, expected=GANGS, agent=st.integers(0, 2), min_workers=st.integers(0, 3))
    def joins(self, node, expected, agent, min_workers):
        self.send(join(node, expected, attempt=self.attempt, agent=f"{node}{agent}", min_workers=min_workers))

    @rule(expected=GANGS)
    def a_gang_joins(self, expected):
        self.send(*(join(e.node, expected, attempt=self.attempt, agent=f"{e.node}0") for e in expected))
        self.everybody_is_ready()

    @rule()
    def everybody_is_ready(self):
        self.send(
            *(
                ready(name, self.state.number, count=len(node.workers), agent=node.agent_id, attempt=self.attempt)
                for name, node in self.state.joined.items()
            )
        )

    @rule(node=NODES, behind=st.integers(0, 2), count=st.integers(1, 2))
    def says_ready(self, node, behind, count):
        agent = self.state.joined[node].agent_id if node in self.state.joined else "x"
        self.send(ready(node, max(0, self.state.number - behind), count=count, agent=agent, attempt=self.attempt))

    @rule(
        node=NODES,
        index=st.integers(0, 1),
        behind=st.integers(-1, 2),
        how=st.sampled_from([{}, {"signal": 9}, {"code": 1}, {"code": 1, "expected": True}]),
        times=st.integers(1, 3),
    )
    def exits(self, node, index, behind, how, times):
        agent = self.state.joined[node].agent_id if node in self.state.joined else "x"
        generation = max(0, self.state.number - behind)
        self.send(*[exited(node, generation, index=index, agent=agent, attempt=self.attempt, **how)] * times)

    @rule(node=NODES)
    def is_lost(self, node):
        if node in self.state.joined:
            self.send(lost(node, agent=self.state.joined[node].agent_id))

    @rule(node=NODES)
    def leaves(self, node):
        if node in self.state.joined:
            command = leave(node, self.attempt)
            sender = d.Sender(attempt=self.attempt, node=node, agent_id=self.state.joined[node].agent_id)
            self.send(d.Leave(at_ms=0, sender=sender, reason=command.reason))

    @rule()
    def time_passes(self):
        wait, limit = d.waiting(self.state), d.limit_ms(self.state)
        if wait is not None and limit is not None:
            self.send(d.Tick(at_ms=0, waiting=wait, waited_ms=limit))
            assert d.waiting(self.state) != wait or self.state.number > wait.number, "the tick decided nothing"

    @precondition(lambda self: self.state.phase is d.Phase.CLOSED)
    @rule()
    def a_new_attempt(self):
        self.attempt = self.state.attempt + 1

    @invariant()
    def the_log_keeps_the_rules(self):
        async def check() -> None:
            recorded = await self.store.read_stream(STREAM, after=self.read)
            for one in recorded:
                self.read = one.version
                event = EVENTS.decode(one.type, one.schema, one.data)
                match event:
                    case ev.GenerationOpened(number=number):
                        assert number == self.newest + 1, "a generation went back or was left out"
                        self.newest = number
                    case ev.GenerationFormed(generation=generation):
                        assert generation.number == self.newest
                        assert generation.number not in self.formed, "formed twice"
                        self.formed.add(generation.number)
                        assert sorted(m.rank for m in generation.members) == list(range(generation.world_size))
                        assert len({m.worker for m in generation.members}) == generation.world_size
                        assert generation.world_size >= self.state.min_workers or self.state.number > self.newest
                    case _:
                        pass
            parts, _ = await self.store.parts(fence_key(JOB))
            assert int(parts.get(fence_key(JOB), b"0")) == self.newest
            assert await verify(self.store, self.repository.decider, EVENTS, STATE, [STREAM]) == []
            stored = await self.repository.load(STREAM)
            assert (stored.state, stored.version) == (self.job.state, self.job.version)

        if self.read or self.job.version:
            self.runner.run(check())


Histories.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase
