from collections.abc import Iterator

import pytest

from libs.runtime.tests.pipeline.pool import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    warm = Pool(tmp_path_factory.mktemp("pool"))
    yield warm
    warm.close()
