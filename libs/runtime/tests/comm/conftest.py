"""One pool of processes for all tests here: starting it costs more than most of them."""

from collections.abc import Iterator

import pytest

from tests.numerics.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    made = Pool(6)
    yield made
    made.close()
