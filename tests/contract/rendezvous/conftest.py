from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from distroml.events import fresh_id
from services.rendezvous.tests.rendezvous_agents import Agent
from tests.contract.targets import Running

Dial = Callable[..., Awaitable[Agent]]


@pytest.fixture
def named() -> str:
    return "rendezvous"


@pytest.fixture
def job() -> str:
    return fresh_id("job")


@pytest.fixture
async def agent(service: Running, job: str) -> AsyncIterator[Dial]:
    """Makes agents of the test's job; they hang up at its end."""
    async with AsyncExitStack() as stack:

        async def make(node: str, agent_id: str = "", *, attempt: int = 1) -> Agent:
            return await stack.enter_async_context(Agent(service.endpoint, node, agent_id, attempt=attempt, job=job))

        yield make


@pytest.fixture
async def pair(agent: Dial) -> tuple[Agent, Agent]:
    """Two agents of the job that joined."""
    a, b = await agent("a"), await agent("b")
    for each in (a, b):
        accepted = await each.join()
        assert accepted.lease_ttl_s > 0
    return a, b
