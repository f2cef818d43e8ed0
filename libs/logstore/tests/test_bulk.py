"""A line that makes the server stumble is given up; a server that stumbles over everything is waited for."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from elastic_transport import ApiResponseMeta, HttpHeaders, NodeConfig
from elasticsearch import ApiError, AsyncElasticsearch

from distroml.logstore.conformance import block, line
from distroml.logstore.elastic import Shipper, shipper
from distroml.logstore.elastic.bulk import Bulk, Documents
from distroml.logstore.port import LogStoreDown


class Elastic:
    """What `bulk` of a client does where some lines make the server stumble."""

    def __init__(self, bad: str, *, whole: bool, healthy_after: int = 0, each: int = 1) -> None:
        """A bad line spoils its `whole` request, or its own item; before `healthy_after` requests each line does."""
        self.bad, self.whole, self.healthy_after, self.each = bad.encode(), whole, healthy_after, each
        self.requests = 0

    async def bulk(self, *, operations: bytes, **_: object) -> object:
        self.requests += 1
        rows = operations.splitlines()
        lines = [b"".join(rows[at : at + self.each]) for at in range(0, len(rows), self.each)]
        spoilt = [self.bad in one or self.requests <= self.healthy_after for one in lines]
        if not any(spoilt):
            return SimpleNamespace(body={"errors": False})
        if self.whole:
            meta = ApiResponseMeta(500, "1.1", HttpHeaders(), 0.0, NodeConfig("http", "h", 9200))
            raise ApiError("boom", meta, {"error": {"type": "null_pointer_exception", "reason": "boom"}})
        items = [{"create": {"status": 500 if one else 201, "error": {"reason": "boom"}}} for one in spoilt]
        return SimpleNamespace(body={"errors": True, "items": items})


def documents(texts: list[str], counts: Counter[str]) -> list[Documents]:
    def count(outcome: str, lines: int) -> None:
        counts[outcome] += lines

    return [Documents(f"{text}\n".encode(), 1, count) for text in texts]


def texts(number: int, *bad: int) -> list[str]:
    return [f"{'bad' if n in bad else 'good'} {n}" for n in range(number)]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("bad", [(0,), (999,), (17, 18, 640)])
async def test_lines_that_alone_are_never_taken_are_given_up(whole: bool, bad: tuple[int, ...]) -> None:
    counts, server = Counter[str](), Elastic("bad", whole=whole)
    batch = documents(texts(1000, *bad), counts)
    assert list(await Bulk(cast(AsyncElasticsearch, server), "s").sift(batch, batch)) == []
    assert counts == {"shipped": 1000 - len(bad), "refused": len(bad)}
    assert server.requests < 100


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("number", [1, 5, 1000])
async def test_a_server_that_stumbles_over_everything_costs_no_line(whole: bool, number: int) -> None:
    counts, server = Counter[str](), Elastic("", whole=whole)
    batch = documents(texts(number), counts)
    assert sorted(await Bulk(cast(AsyncElasticsearch, server), "s").sift(batch, batch)) == sorted(batch)
    assert counts == {}
    assert server.requests <= 15


async def test_where_a_part_of_the_server_has_trouble_no_line_is_given_up() -> None:
    """As when one of two shards has no room left: the others' lines are taken."""
    counts, server = Counter[str](), Elastic("bad", whole=False)
    batch = documents(texts(100, *range(0, 100, 2)), counts)
    again = await Bulk(cast(AsyncElasticsearch, server), "s").sift(batch, batch)
    assert list(again) == batch[::2]
    assert counts == {"shipped": 50}


@pytest.mark.parametrize("healthy_after", range(1, 7))
async def test_a_server_that_comes_back_meanwhile_costs_no_line(healthy_after: int) -> None:
    counts, server = Counter[str](), Elastic("bad", whole=True, healthy_after=healthy_after)
    batch = documents(texts(20), counts)
    again = await Bulk(cast(AsyncElasticsearch, server), "s").sift(batch, batch)
    assert counts["refused"] == 0
    assert counts["shipped"] + len(again) == 20


async def test_a_line_that_is_sent_for_the_first_time_is_not_to_blame() -> None:
    counts, server = Counter[str](), Elastic("bad", whole=False)
    batch = documents(texts(100, 3, 60), counts)
    again = await Bulk(cast(AsyncElasticsearch, server), "s").sift(batch, batch[:50])
    assert list(again) == [batch[60]]
    assert counts == {"shipped": 98, "refused": 1}


async def test_a_server_that_goes_meanwhile_keeps_what_it_did_not_take() -> None:
    class Gone(Elastic):
        async def bulk(self, *, operations: bytes, **_: object) -> object:
            if self.requests == 2:
                raise LogStoreDown("not reached")
            return await super().bulk(operations=operations)

    counts, server = Counter[str](), Gone("bad", whole=True)
    batch = documents(texts(100, 3), counts)
    again = await Bulk(cast(AsyncElasticsearch, server), "s").sift(batch, batch)
    assert sorted(again) == sorted(batch)
    assert counts == {}


@pytest.mark.parametrize("whole", [True, False])
async def test_where_little_is_written_the_others_of_all_times_tell(whole: bool) -> None:
    """Before, a line that is never taken was sent again for as long as the node had few others."""
    counts, server = Counter[str](), Elastic("bad", whole=whole)
    bulk, left, tries = Bulk(cast(AsyncElasticsearch, server), "s"), documents(["bad"], counts), 0
    while left:
        tries += 1
        assert tries < 20
        left = list(await bulk.sift([*left, *documents([f"good {tries}"], counts)], left))
    assert counts == {"shipped": 9, "refused": 1}


@pytest.mark.parametrize("whole", [True, False])
async def test_a_long_outage_of_the_whole_or_of_a_part_costs_no_line(whole: bool) -> None:
    for bad in ("", "bad"):
        counts, server = Counter[str](), Elastic(bad, whole=whole)
        bulk, left = Bulk(cast(AsyncElasticsearch, server), "s"), list[Documents]()
        for n in range(30):
            left = list(await bulk.sift([*left, *documents([f"bad {n}", f"good {n}"], counts)], left))
        assert counts["refused"] == 0
        server.bad = b"none"
        assert await bulk.send(left) == []
        assert counts == {"shipped": 60}


async def test_a_line_that_was_taken_in_the_end_tells_nothing_against_another() -> None:
    counts, server = Counter[str](), Elastic("bad", whole=False)
    bulk = Bulk(cast(AsyncElasticsearch, server), "s")
    first, second = documents(["bad 1", "bad 2"], counts)
    good = documents(texts(8), counts)
    assert list(await bulk.sift([first, *good], [first])) == [first]
    server.bad = b"bad 2"
    assert list(await bulk.sift([first, second, *good[:5]], [first, second])) == [second]
    assert counts == {"shipped": 14}


async def test_lines_of_one_block_meet_each_its_own_end() -> None:
    class Strict(Elastic):
        async def bulk(self, *, operations: bytes, **_: object) -> object:
            rows = operations.splitlines()
            ends = [next((end for end in (400, 500, 503) if b"%d" % end in row), 201) for row in rows[1::2]]
            if set(ends) == {201}:
                return SimpleNamespace(body={"errors": False})
            return SimpleNamespace(body={"errors": True, "items": [{"create": {"status": end}} for end in ends]})

    counts, server = Counter[str](), Strict("", whole=False)
    (some,) = documents(["x"], counts)
    some = some._replace(data=b"".join(b"create\n%d\n" % n for n in (1, 400, 500, 2, 503)), lines=5)
    bulk = Bulk(cast(AsyncElasticsearch, server), "s")
    left = await bulk.send([some, some._replace(data=b"create\n7\ncreate\n8\n", lines=2)])
    assert [one.data for one in left] == [b"create\n500\n", b"create\n503\n"]
    assert bulk.stumbled
    assert counts == {"shipped": 4, "refused": 1}


@pytest.mark.parametrize(("whole", "others"), [(True, 20), (False, 20), (True, 1), (False, 1)])
async def test_such_a_line_keeps_no_other_from_arriving(
    whole: bool, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, all others waited behind it until there was no room for them."""
    monkeypatch.setattr(shipper, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(shipper, "_LONGEST_WAIT_S", 0.001)
    monkeypatch.setattr(shipper, "_GATHER_S", 0.001)
    counts, server = Counter[str](), cast(Any, Elastic("bad", whole=whole, each=2))
    shipping = Shipper(
        server, "dep", host="h", max_bytes=1 << 20, count=lambda end, n: counts.update({end: n}), tell=lambda _: None
    )

    async def ready(*_: object) -> None:
        return None

    monkeypatch.setattr(shipper, "check_server", ready)
    monkeypatch.setattr(shipper, "ensure_template", ready)
    shipping.add(block(line("job-a", "bad")))
    running, good = asyncio.create_task(shipping.run()), 0
    async with asyncio.timeout(20):
        while not counts["refused"]:
            for _ in range(others):
                good += 1
                shipping.add(block(line("job-a", "good", at=good)))
            while others == 1 and counts["shipped"] < good:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)
    assert await shipping.flush(20)
    running.cancel()
    await asyncio.wait([running])
    assert counts == {"shipped": good, "refused": 1}
