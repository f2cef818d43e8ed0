"""What answers in Elasticsearch's place: each is named, with what to do."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from distroml.logstore import Block, LogStoreDown, LogStoreRefused, Query
from distroml.logstore.conformance import block, line
from distroml.logstore.elastic import ElasticLogSearch, Shipper, check_server, connect
from distroml.logstore.elastic.shipper import SHIPPED
from distroml.logstore.elastic.template import TEMPLATE, VERSION
from distroml.logstore.settings import ElasticSettings, namespace_of

ELASTIC = "X-Elastic-Product: Elasticsearch\r\n"


def root(**version: str) -> dict[str, Any]:
    return {"name": "n", "version": version, "tagline": "…"}


def http(status: str, body: object, headers: str = "") -> bytes:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    head = f"HTTP/1.1 {status}\r\n{headers}content-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[ElasticSettings]:
    """A server that gives these answers in turn, and the last of them from then on."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if size := re.search(rb"(?i)content-length: (\d+)", head):
                    await reader.readexactly(int(size[1]))
                writer.write(left.pop(0) if len(left) > 1 else left[0])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield ElasticSettings(urls=(f"http://127.0.0.1:{port}",), user="u", password="p")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http("200 OK", root(number="8.19.3"), ELASTIC), "Elasticsearch 8.19.3 is not supported"),
        (http("200 OK", root(number="7.10.2")), "unknown 7.10.2 is not supported"),
        (http("200 OK", root(number="2.19.0", distribution="opensearch")), "opensearch 2.19.0 is not supported"),
        (http("401 Unauthorized", {"error": {"type": "security_exception"}}, ELASTIC), "refuses the credentials"),
        (http("403 Forbidden", {"error": {"type": "security_exception", "reason": "no"}}, ELASTIC), "privileges"),
        (http("200 OK", "<html>Prometheus</html>"), "no Elasticsearch"),
        (http("404 Not Found", "404 page not found"), "404"),
        (b"+OK this is not HTTP\r\n\r\n", "another protocol"),
    ],
)
async def test_another_server_is_refused_by_name(answer: bytes, said: str) -> None:
    async with answering(answer) as settings:
        client = connect(settings)
        with pytest.raises(LogStoreRefused) as refused:
            await check_server(client)
        await client.close()
    assert said in str(refused.value)


async def test_a_busy_and_an_absent_server_are_asked_again(unused: Callable[[], Coroutine[Any, Any, int]]) -> None:
    async with answering(http("503 Service Unavailable", {"error": {"type": "busy"}}, ELASTIC)) as settings:
        client = connect(settings)
        with pytest.raises(LogStoreDown, match="503") as down:
            await check_server(client)
        await client.close()
    assert not isinstance(down.value, LogStoreRefused)
    client = connect(ElasticSettings(urls=(f"http://127.0.0.1:{await unused()}",)))
    with pytest.raises(LogStoreDown, match="not reached") as down:
        await check_server(client)
    await client.close()
    assert not isinstance(down.value, LogStoreRefused)


async def test_shards_that_are_being_placed_are_waited_for() -> None:
    serving = http("200 OK", root(number="9.5.3"), ELASTIC)
    placing = http("503 Service Unavailable", {"error": {"type": "no_shard_available_action_exception"}}, ELASTIC)
    nothing = http("200 OK", {"hits": {"hits": []}}, ELASTIC)
    async with answering(serving, placing, placing, nothing) as settings:
        client = connect(settings)
        assert (await ElasticLogSearch(client, "dep").search(Query(job="j"))).lines == ()
        await client.close()
    async with answering(serving, placing) as settings:
        client = connect(settings)
        with pytest.raises(LogStoreDown, match="503: no_shard"):
            await ElasticLogSearch(client, "dep", placing_s=0.3).search(Query(job="j"))
        await client.close()


async def test_lines_are_counted_once_where_a_divided_batch_fails_half_way() -> None:
    counted: Counter[str] = Counter()
    template = http("200 OK", {"index_templates": [{"index_template": {"version": 99}}]}, ELASTIC)
    ready = (http("200 OK", root(number="9.5.3"), ELASTIC), template)
    large = http("413 Content Too Large", {"error": {"type": "too_large"}}, ELASTIC)
    taken = http("200 OK", {"errors": False}, ELASTIC)
    busy = http("503 Service Unavailable", {"error": {"type": "busy"}}, ELASTIC)
    # The first half arrives, the second one waits until the server is there again.
    async with answering(*ready, large, taken, busy, *ready, taken) as settings:
        client = connect(settings)
        why: list[str | None] = []
        shipper = Shipper(
            client,
            "dep",
            host="h",
            max_bytes=1 << 20,
            count=lambda outcome, lines: counted.update({outcome: lines}),
            tell=why.append,
        )
        shipper.add(Block(job="j", worker="w", incarnation=1, stream="stdout", rank=0, generation=1, at_ms=1, offset=0,
                          data=b"one\ntwo\nthree\nfour\n"))  # fmt: skip
        running = asyncio.create_task(shipper.run())
        assert await shipper.flush(20.0)
        running.cancel()
        await client.close()
    assert counted == {"shipped": 4}
    assert "2 lines yet: Elasticsearch answered 503" in str(why[0])


async def test_lines_that_a_full_disk_turned_away_wait_for_room() -> None:
    template = {"index_templates": [{"name": TEMPLATE, "index_template": {"version": VERSION}}]}
    turned_away = {"status": 500, "error": {"type": "i_o_exception", "reason": "No space left on device"}}
    bodies = (
        *(root(number="9.5.3"), template, {"errors": True, "items": [{"create": turned_away}]}),
        *(root(number="9.5.3"), template, {"errors": False}),
    )
    counts, told = Counter[str](), list[str | None]()
    async with answering(*(http("200 OK", body, ELASTIC) for body in bodies)) as settings:
        client = connect(settings)
        shipper = Shipper(
            client,
            "dep",
            host="h",
            max_bytes=1 << 20,
            count=lambda end, lines: counts.update({end: lines}),
            tell=told.append,
        )
        task = asyncio.create_task(shipper.run())
        shipper.add(block(line("job-a", "kept")))
        assert await shipper.flush(30)
        task.cancel()
        await asyncio.wait([task])
        await client.close()
    assert counts == {SHIPPED: 1}
    assert told[0] is not None
    assert "No space left on device; make room on its disks" in told[0]


@pytest.fixture
def unused() -> Callable[[], Coroutine[Any, Any, int]]:
    async def find() -> int:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            return server.sockets[0].getsockname()[1]

    return find


def test_settings_say_everything_that_is_wrong() -> None:
    read = ElasticSettings.read
    assert read({}, "dep") is None
    good = read(
        {"DISTROML_ELASTICSEARCH": "https://a:9200/, https://b:9200", "DISTROML_ELASTICSEARCH_API_KEY": "k"}, "d"
    )
    assert good is not None
    assert good.urls == ("https://a:9200", "https://b:9200")
    assert "k" not in repr(good).replace("default", "")[-4:]
    with pytest.raises(ValueError, match=r"ends up in logs.*is no address.*go together.*stands instead"):
        read(
            {
                "DISTROML_ELASTICSEARCH": "https://me:secret@a:9200,ftp://b",
                "DISTROML_ELASTICSEARCH_USER": "u",
                "DISTROML_ELASTICSEARCH_API_KEY": "k",
            },
            "dep",
        )
    assert namespace_of("Dep-1/x") == "dep_1_x"
