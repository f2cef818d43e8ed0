from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.processes import Processes
from tests.contract.targets import SLOW, TARGETS, Running
from tests.servers import Servers


@pytest.fixture(scope="package")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The processes that the tests of this folder share; they end with its last test, for even idle ones take time."""
    found = Processes(tmp_path_factory.mktemp("services"))
    yield found
    found.close()


@pytest.fixture(scope="package")
def processes_on_the_stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The same with all that they keep on real servers, and a relay each."""
    told = servers.settings("etcd", "nats", "minio", "postgres", "elasticsearch")
    found = Processes(tmp_path_factory.mktemp("services"), {"DISTROML_RELAY_SEAL_S": "0.5", **told})
    yield found
    found.close()


PARAMETERS = [
    pytest.param(name, marks=[pytest.mark.e2e, pytest.mark.timeout(300)] if name in SLOW else ()) for name in TARGETS
]


@pytest.fixture(params=PARAMETERS)
async def service(request: pytest.FixtureRequest, named: str) -> AsyncIterator[Running]:
    """The service that `named` says, in each of the ways in which it can run."""
    async with TARGETS[request.param](request, named) as running_service:
        yield running_service
