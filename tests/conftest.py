from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Servers, all_servers


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Every server of the stack, for the contracts of services and the demo alike; begun for the first who asks."""
    with all_servers(tmp_path_factory.mktemp("stack")) as found:
        yield found
