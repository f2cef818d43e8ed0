from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from distroml.rpc import Service, ServiceSettings

TOKEN = "a-token-of-the-data-folder"

Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(service="scheduler", data=tmp_path, token=TOKEN, deployment="dep-1", drain_s=2.0)


@pytest.fixture
async def serve(settings: ServiceSettings) -> AsyncIterator[Serve]:
    """Starts a service on free ports; it is drained at the end of the test."""
    async with AsyncExitStack() as stack:

        async def start(prepare: Callable[[Service], None] = lambda service: None) -> Service:
            service = await stack.enter_async_context(Service(settings))
            prepare(service)
            await service.start()
            return service

        yield start
