from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from elasticsearch import AsyncElasticsearch

from deploy.stack import running
from deploy.stack.elasticsearch import Elasticsearch
from deploy.stack.running import Running
from distroml.logstore.elastic import connect
from distroml.logstore.settings import ElasticSettings


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Elasticsearch(), tmp_path_factory.mktemp("elasticsearch")) as begun:
        yield begun


@pytest.fixture
def settings(server: Running) -> ElasticSettings:
    found = ElasticSettings.read(server.server.settings(server.ports), "Dep-1")
    assert found is not None
    return found


@pytest.fixture
async def client(settings: ElasticSettings) -> AsyncIterator[AsyncElasticsearch]:
    made = connect(settings)
    yield made
    await made.close()
