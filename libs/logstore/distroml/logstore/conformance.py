"""The promises of the port for searching lines as tests, for any back end.

A back end's test inherits `LogSearchConformance` and overrides the fixture `store`. Needs pytest; nothing else
imports it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from distroml.logstore.blocks import Block
from distroml.logstore.port import Line, LogSearch, Page, Query, WrongQuery

T0_MS = 1_790_000_000_000


@dataclass(frozen=True)
class Store:
    """A back end under test: `keep` returns when what it was given is found."""

    search: LogSearch
    keep: Callable[[Sequence[Line]], Awaitable[None]]


def line(job: str, text: str, *, at: int = 0, rank: int = 0, level: str = "", offset: int = -1) -> Line:
    """A line of one of two workers, `at` milliseconds after the beginning; with a level it says that and its trace."""
    traced = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"} if level else {}
    said = [f"{name}={value}" for name, value in {"level": level, **traced}.items() if value]
    return Line(
        job=job,
        worker=f"w-{rank}",
        incarnation=1,
        stream="stderr" if level else "stdout",
        offset=at * 100 if offset < 0 else offset,
        rank=rank,
        generation=2,
        attempt=3,
        at_ms=T0_MS + at,
        text=" ".join([text, *said]),
        level=level,
        **traced,
    )


def block(one: Line) -> Block:
    """The line as it stands in a file."""
    return Block(
        job=one.job,
        worker=one.worker,
        incarnation=one.incarnation,
        stream=one.stream,
        rank=one.rank,
        generation=one.generation,
        attempt=one.attempt,
        at_ms=one.at_ms,
        offset=one.offset,
        data=one.text.encode() + b"\n",
    )


class LogSearchConformance:
    """Inherit, and override `store`; tests take jobs of their own, so one back end may serve them all."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        """A back end."""
        raise NotImplementedError
        yield

    async def test_a_line_comes_back_whole(self, store: Store):
        kept = [line("job-whole", "loss=0.25 ✓\t{}", level="error"), line("job-whole", "", at=1)]
        await store.keep([*kept, line("job-other", "loss=0.25")])
        assert await store.search.search(Query(job="job-whole")) == Page(tuple(kept))
        assert await store.search.search(Query(job="job-nobody")) == Page(())

    async def test_a_line_sent_again_is_there_once(self, store: Store):
        one = line("job-again", "once")
        await store.keep([one])
        await store.keep([one, line("job-again", "other", at=1)])
        page = await store.search.search(Query(job="job-again"))
        assert [found.text for found in page.lines] == ["once", "other"]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("outofmemoryerror", {0}),
            ("cuda.OutOfMemoryError", {0}),
            ("Memory", set[int]()),
            ("step 120", {1, 2}),
            ('"step 120"', {1}),
            ('"step 120', {1}),
            ("0.25", {1}),
            ("25.0", set[int]()),
            ("STEP", {1, 2}),
            ("größe", {2}),
            ("step cuda", set[int]()),
            ("rank_3", {3}),
            ("a%b* [x]", {3}),
            ("w" * 350, {4}),
            ("", {0, 1, 2, 3, 4}),
        ],
    )
    async def test_text_is_found_by_whole_words_and_phrases(self, store: Store, text: str, found: set[int]):
        texts = [
            "torch.cuda.OutOfMemoryError: no memory_left",
            "step 120: loss=0.25",
            "120 is the Größe of step=7",
            "rank_3 says A%B*[x]",
            f"x {'w' * 350}",
        ]
        await store.keep([line("job-text", one, at=at) for at, one in enumerate(texts)])
        page = await store.search.search(Query(job="job-text", text=text))
        assert {texts.index(one.text) for one in page.lines} == found

    async def test_ranks_times_and_levels_narrow_it(self, store: Store):
        levels = ["", "debug", "info", "warning", "error", "critical"]
        await store.keep([line("job-narrow", f"n {n}", at=n, rank=n % 3, level=levels[n % 6]) for n in range(18)])

        async def found(query: Query) -> list[int]:
            return [int(one.text.split()[1]) for one in (await store.search.search(query)).lines]

        base = Query(job="job-narrow")
        assert await found(replace_query(base, ranks=(1,))) == [1, 4, 7, 10, 13, 16]
        assert await found(replace_query(base, ranks=(0, 2), until_ms=T0_MS + 4)) == [0, 2, 3]
        assert await found(replace_query(base, since_ms=T0_MS + 3, until_ms=T0_MS + 6)) == [3, 4, 5]
        assert await found(replace_query(base, level="error")) == [4, 5, 10, 11, 16, 17]
        assert await found(replace_query(base, level="warning", ranks=(0,), text="n 3")) == [3]

    @pytest.mark.parametrize("newest_first", [False, True])
    async def test_pages_hold_every_line_once_and_in_order(self, store: Store, newest_first: bool):
        job = f"job-pages-{'down' if newest_first else 'up'}"
        # Many lines of one millisecond, of two workers, at equal places in their files.
        kept = [line(job, f"{n}", at=n // 10, rank=n % 2, offset=n // 2 * 9) for n in range(60)]
        await store.keep(kept)
        wanted = sorted(kept, key=lambda one: (one.at_ms, one.offset, one.id), reverse=newest_first)
        found: list[Line] = []
        query, pages = Query(job=job, limit=7, newest_first=newest_first), 0
        while True:
            page = await store.search.search(query)
            found += page.lines
            pages += 1
            if not page.cursor:
                break
            query = replace_query(query, cursor=page.cursor)
            if pages == 2:
                # What comes meanwhile disturbs no page.
                late = line(job, "late", at=-5 if newest_first else 99, offset=5_000)
                await store.keep([late])
                wanted = [*wanted, late]
        assert found == wanted
        assert pages == 9

    async def test_what_means_nothing_is_refused_by_name(self, store: Store):
        for wrong, name in (
            ({"text": "--- !"}, "text"),
            ({"text": "x" * 2000}, "text"),
            ({"level": "loud"}, "level"),
            ({"limit": 0}, "limit"),
            ({"ranks": (-1,)}, "ranks"),
            ({"cursor": "made up"}, "cursor"),
        ):
            with pytest.raises(WrongQuery) as refused:
                await store.search.search(Query(job="job-a", **wrong))  # pyright: ignore[reportArgumentType]
            assert [field for field, _ in refused.value.problems] == [name]


def replace_query(query: Query, **changes: object) -> Query:
    """The query with other choices."""
    return replace(query, **changes)
