"""Elasticsearch, a real one: the port's promises, shipping, the template and retention."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from elasticsearch import AsyncElasticsearch

from deploy.stack.running import Running
from distroml.logstore import Line, LogStoreDown, Query
from distroml.logstore.conformance import T0_MS, LogSearchConformance, Store, block, line
from distroml.logstore.elastic import ElasticLogSearch, Shipper, Upkeep, check_server, connect
from distroml.logstore.elastic.template import TEMPLATE, VERSION, ensure_template, stream_of
from distroml.logstore.settings import ElasticSettings
from distroml.observability import bound, trace
from distroml.observability.logs import JsonFormatter

# The server begins within the first test that asks for it: a minute on a busy machine.
pytestmark = pytest.mark.timeout(300)


class Shipping:
    """A shipper that runs, and what it told."""

    def __init__(self, client: AsyncElasticsearch, namespace: str, max_bytes: int = 8 << 20) -> None:
        self.counts: Counter[str] = Counter()
        self.told: list[str | None] = []
        self.shipper = Shipper(
            client, namespace, host="node-a", max_bytes=max_bytes, count=self._count, tell=self.told.append
        )

    def _count(self, outcome: str, lines: int) -> None:
        self.counts[outcome] += lines

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Shipper]:
        task = asyncio.create_task(self.shipper.run())
        yield self.shipper
        task.cancel()
        await asyncio.wait([task])


class Wire:
    """What carries bytes to the server; cut, nobody reaches it. Its own death: `tests/e2e/whole/test_logs.py`."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._port = 0
        self._carried: set[asyncio.StreamWriter] = set()

    async def lay(self) -> str:
        """Carry on, at the address that this gives."""
        self._listening = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self._port = self._listening.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self._port}"

    def cut(self) -> None:
        self._listening.close()
        for writer in self._carried:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._server.port)
        ends = {writer, forth}
        self._carried |= ends
        await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))
        self._carried -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def wire(server: Running) -> AsyncIterator[Wire]:
    made = Wire(server)
    yield made
    made.cut()


class TestElasticLogSearch(LogSearchConformance):
    @pytest.fixture
    async def store(self, client: AsyncElasticsearch, settings: ElasticSettings) -> AsyncIterator[Store]:
        shipping = Shipping(client, settings.namespace)
        async with shipping.running() as shipper:

            async def keep(lines: Sequence[Line]) -> None:
                for one in lines:
                    shipper.add(block(one))
                assert await shipper.flush(60)
                await client.indices.refresh(index=stream_of(settings.namespace))

            yield Store(ElasticLogSearch(client, settings.namespace), keep)
        assert set(shipping.counts) <= {"shipped"}


async def test_what_waits_through_an_outage_arrives_and_every_line_is_counted(
    server: Running, client: AsyncElasticsearch, wire: Wire
) -> None:
    assert await check_server(client) == server.server.version
    over = connect(ElasticSettings(urls=(await wire.lay(),)))
    shipping = Shipping(over, "outage", max_bytes=400_000)
    search = ElasticLogSearch(over, "outage")
    async with over, shipping.running() as shipper:
        shipper.add(block(line("job-a", "before")))
        assert await shipper.flush(60)
        wire.cut()
        for number in range(2000):
            shipper.add(block(line("job-a", f"during {number} {'x' * 100}", at=1 + number)))
        while not shipping.told or shipping.told[-1] is None:
            await asyncio.sleep(0.05)
        with pytest.raises(LogStoreDown, match="not reached"):
            await search.search(Query(job="job-a"))
        await wire.lay()
        assert await shipper.flush(60)
        # What may have been sent before is sent again after a crash of the agent.
        shipper.add(block(line("job-a", "before")))
        assert await shipper.flush(60)
    assert (shipping.told[0], shipping.told[-1]) == (None, None)
    await client.indices.refresh(index=stream_of("outage"))
    there = (await client.count(index=stream_of("outage")))["count"]
    assert shipping.counts["full"] > 0
    assert there + shipping.counts["full"] == 2001
    assert shipping.counts["shipped"] == there + 1
    newest = await ElasticLogSearch(client, "outage").search(Query(job="job-a", newest_first=True, limit=1))
    assert newest.lines[0].text.startswith("during 1999 ")


async def test_a_newer_release_template_stays_and_an_older_one_is_replaced(client: AsyncElasticsearch) -> None:
    async def installed() -> int:
        found = await client.indices.get_index_template(name=TEMPLATE)
        return found["index_templates"][0]["index_template"]["version"]

    await asyncio.gather(*(ensure_template(client) for _ in range(4)))
    assert await installed() == VERSION
    await ensure_template(client, version=VERSION + 5)
    await ensure_template(client)
    assert await installed() == VERSION + 5


async def test_indices_past_retention_go_and_the_one_that_is_written_stays(client: AsyncElasticsearch) -> None:
    shipping, stream = Shipping(client, "old"), stream_of("old")
    async with shipping.running() as shipper:

        async def ship(text: str, at: int) -> None:
            shipper.add(block(line("job-a", text, at=at)))
            assert await shipper.flush(60)
            await client.indices.refresh(index=stream)

        await ship("first", 0)
        await client.indices.rollover(alias=stream)
        await ship("second", 1)
        made = await client.indices.get_settings(index=stream, name="index.creation_date", flat_settings=True)
        second_ms = max(int(one["settings"]["index.creation_date"]) for one in made.values())
        upkeep = Upkeep(client, "old", retention_s=1000, holder="telemetry-1")
        other = Upkeep(client, "old", retention_s=1000, holder="telemetry-2")
        done = await upkeep.round(second_ms + 999_999)
        assert done is not None
        assert done.deleted == ()
        assert await other.round(second_ms + 1_000_000) is None
        done = await upkeep.round(second_ms + 1_000_000)
        assert done is not None
        assert [name[-6:] for name in done.deleted] == ["000001"]
        # The lease of one that is gone is another's.
        done = await other.round(second_ms + 99_000_000)
        assert done is not None
        assert done.deleted == ()
        page = await ElasticLogSearch(client, "old").search(Query(job="job-a"))
        assert [one.text for one in page.lines] == ["second"]
        await ship("third", 2)
        # Sent again after a rollover, a line lies in two indices and is found once.
        await client.indices.rollover(alias=stream)
        await ship("third", 2)
        page = await ElasticLogSearch(client, "old").search(Query(job="job-a", since_ms=T0_MS + 2))
        assert [one.text for one in page.lines] == ["third"]


async def test_lines_that_the_server_never_takes_are_counted_and_hold_nobody_up(client: AsyncElasticsearch) -> None:
    shipping = Shipping(client, "refused")
    async with shipping.running() as shipper:
        shipper.add(block(line("job-a", "good")))
        shipper.add(block(line("j" * 600, "an id that is longer than ids may be", at=1)))
        shipper.add(block(line("job-a", "good too", at=2)))
        assert await shipper.flush(60)
    assert shipping.counts == {"shipped": 2, "refused": 1}


async def test_a_service_s_line_is_taken_as_it_is_found_by_its_job_and_kept_no_longer(
    client: AsyncElasticsearch,
) -> None:
    record = logging.LogRecord("distroml.scheduler", logging.WARNING, "f", 1, "%s", ("placed",), None)
    with trace.use(trace.fresh()), bound(job="job-a"):
        text = JsonFormatter("scheduler", deployment="Dep-1").format(record)
    await ensure_template(client)
    # As the manual has whoever collects them do it.
    stream = "logs-distroml.service-served"
    await client.index(index=stream, op_type="create", document=json.loads(text), refresh=True)
    named = {"distroml.job": "job-a", "service.name": "scheduler", "log.level": "warning"}
    named["trace.id"] = json.loads(text)["trace.id"]
    query = {"bool": {"filter": [{"term": {name: value}} for name, value in named.items()]}}
    found = await client.search(index="logs-distroml.*-served", query=query)
    assert [hit["_source"]["message"] for hit in found["hits"]["hits"]] == ["placed"]
    await client.indices.rollover(alias=stream)
    done = await Upkeep(client, "served", retention_s=60, holder="telemetry-1").round(time.time_ns() // 10**6 + 10**9)
    assert done is not None
    assert [name[-6:] for name in done.deleted] == ["000001"]
