"""Requests with many documents, and what became of each document: there, refused for good, or to be sent again.

Documents of one block stay in one piece for as long as all of them meet the same end, as nearly all do.

A server that has trouble of its own answers 500, and so does one that a document makes stumble. Which of the two it is,
other documents tell: where nearly all of them are taken, the one that never is has to be given up (`Bulk.sift`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from elasticsearch import ApiError, AsyncElasticsearch

from distroml.logstore.elastic.client import advice, speaking
from distroml.logstore.port import LogStoreDown, LogStoreRefused
from distroml.observability import logger

log = logger(__name__)

SHIPPED: Final = "shipped"
REFUSED: Final = "refused"

Count: TypeAlias = Callable[[str, int], None]
"""Told how many lines met which end."""

# The whole request is too large, or one line spoils it.
_DIVIDE: Final = frozenset({400, 413})
# The server will take it later: queues are full, the data stream's template is missing; or, from a status on, it has
# trouble of its own, for which as a rule no line is to blame: a shard has no place yet, a disk is full.
_LATER: Final = frozenset({404, 429})
_ITS_OWN: Final = 500
_THERE: Final = frozenset({200, 201, 409})

_IN_VAIN: Final = 15
"""So many requests of which nothing was taken, down to eighths of what was to be sent, are an outage."""
_REQUESTS: Final = 256
"""At most so many at once to find what is to blame: some ten lines of ten thousand, if each spoils its request."""
_TAKEN_FOR_EACH: Final = 9
"""Where fewer others than these were taken for each line that is not, a part of the server has trouble."""
_GIVEN_UP: Final = 16
"""At most so many lines at once."""


class Documents(NamedTuple):
    """Lines as Elasticsearch takes them, two lines of a request for each, and who is told what became of them."""

    data: bytes
    lines: int
    told: Count

    def each(self) -> Sequence[Documents]:
        """One by one."""
        if self.lines == 1:
            return [self]
        rows = self.data.split(b"\n")
        return [Documents(b"%b\n%b\n" % pair, 1, self.told) for pair in zip(rows[::2], rows[1::2], strict=False)]


def one_by_one(batch: Sequence[Documents]) -> list[Documents]:
    """The same, for each line its own."""
    return [one for some in batch for one in some.each()]


def lines_of(batch: Sequence[Documents]) -> int:
    """How many lines."""
    return sum(some.lines for some in batch)


def count(outcome: str, documents: Sequence[Documents]) -> None:
    """Tell what became of documents."""
    found = Counter[Count]()
    for some in documents:
        found[some.told] += some.lines
    for told, lines in found.items():
        told(outcome, lines)


class Bulk:
    """Sends documents to one data stream, and counts what became of them.

    Attributes:
        held_by: why some were not taken yet, as the end of a sentence.
        stumbled: whether the last `send` met the answer that also a single document may cause.
    """

    def __init__(self, client: AsyncElasticsearch, stream: str) -> None:
        self._client, self._stream = client, stream
        self.held_by = ""
        self.stumbled = False
        self._taken = 0
        # For each line that alone was not taken how many others were, each time that was tried.
        self._beside: dict[Documents, int] = {}
        # Documents that met it by themselves, by their identities.
        self._alone: set[int] = set()

    async def send(self, batch: Sequence[Documents]) -> Sequence[Documents]:
        """Send a batch; what is to be sent again, the whole where it raises as `speaking` does."""
        again = await self._try(batch)
        if not again:
            self._beside.clear()
        return again

    async def sift(self, batch: Sequence[Documents], suspects: Sequence[Documents]) -> Sequence[Documents]:
        """Send a batch part by part, and give up those of the suspects that alone are never taken.

        Nothing is given up where little else is taken either, now and when they were sifted before. Returns what is to
        be sent again.

        Args:
            batch: single lines.
            suspects: those of the batch that were sent before, again and again.
        """
        known = set(map(id, suspects))
        before, asked = self._taken, 0
        parts, again, alone = deque([batch]), list[Documents](), list[Documents]()
        while parts:
            part = parts.popleft()
            if asked >= (_IN_VAIN if self._taken == before else _REQUESTS):
                again += part
                continue
            asked += 1
            try:
                left = await self._try(part)
            except LogStoreDown as error:
                self.held_by = f": {error}"
                if not self.stumbled:
                    # It is gone, and not for anything that it was sent.
                    again += [*part, *(one for rest in parts for one in rest)]
                    break
                left = part
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[:middle], part[middle:]]
                    continue
            to_blame = self._alone & known
            for one in left:
                (alone if id(one) in to_blame else again).append(one)
        taken = self._taken - before
        # Where jobs write little there are few others to tell by at a time: those of all times tell together.
        self._beside = {one: self._beside.get(one, 0) + taken for one in alone}
        blamed = list[Documents]()
        for one in alone:
            is_blamed = taken > 0 and self._beside[one] >= _TAKEN_FOR_EACH * len(alone) and len(blamed) < _GIVEN_UP
            (blamed if is_blamed else again).append(one)
        return [*again, *await self._given_up(blamed)]

    async def _given_up(self, alone: Sequence[Documents]) -> Sequence[Documents]:
        """Send each once more, now that others are taken, and give up those that are not; returns the others."""
        again: list[Documents] = []
        for one in alone:
            try:
                again += await self._try([one])
            except LogStoreDown as error:
                self.held_by = f": {error}"
                again.append(one)
            if id(one) in self._alone:
                again.remove(one)
                self._refuse([one], f"it is answered by 500 again and again, and others are taken{self.held_by}")
        return again

    async def _try(self, batch: Sequence[Documents]) -> Sequence[Documents]:
        self.stumbled = False
        self._alone.clear()
        return await self._send(batch)

    async def _send(self, batch: Sequence[Documents]) -> Sequence[Documents]:
        # In one piece: the client looks at each piece by itself.
        operations: Any = b"".join([some.data for some in batch])
        try:
            async with speaking():
                answer = await self._client.bulk(
                    index=self._stream,
                    operations=operations,
                    require_data_stream=True,
                    filter_path=["errors", "items.*.status", "items.*.error.type", "items.*.error.reason"],
                )
        except LogStoreRefused as error:
            cause = error.__cause__
            status = cause.status_code if isinstance(cause, ApiError) else 0
            if status in _DIVIDE:
                return await self._halves(batch, str(error))
            if status == _ITS_OWN:
                self.stumbled = True
                if lines_of(batch) == 1:
                    self._alone.add(id(batch[0]))
            raise
        match answer.body:
            case {"errors": False}:
                self._took(batch)
                return []
            case {"errors": True, "items": [*items]} if len(items) == lines_of(batch):
                return self._settle(one_by_one(batch), [item["create"] for item in items])
            case other:
                raise LogStoreRefused(f"what answers does not say what became of the lines: {str(other)[:120]!r}")

    async def _halves(self, batch: Sequence[Documents], why: str) -> Sequence[Documents]:
        """The server, or a proxy before it, does not take the request as a whole."""
        if lines_of(batch) == 1:
            self._refuse(batch, why)
            return []
        if len(batch) == 1:
            batch = batch[0].each()
        middle = len(batch) // 2
        again = await self._send(batch[:middle])
        try:
            return [*again, *await self._send(batch[middle:])]
        except LogStoreDown as error:
            # What became of the first half is counted, and is not to be sent and counted again.
            self.held_by = f": {error}"
            return [*again, *batch[middle:]]

    def _settle(self, batch: Sequence[Documents], items: Sequence[dict[str, Any]]) -> list[Documents]:
        pairs = list(zip(batch, items, strict=True))
        again = [document for document, item in pairs if _is_for_later(item)]
        refused = [(document, item) for document, item in pairs if _is_for_good(item)]
        if again:
            later = next(item for item in items if _is_for_later(item))
            reason = str(later.get("error", {}).get("reason", later["status"]))[:300]
            self.held_by = f": {reason}{advice(reason)}"
            own = {id(document) for document, item in pairs if item["status"] == _ITS_OWN}
            self.stumbled |= bool(own)
            self._alone |= own
        self._took([document for document, item in pairs if item["status"] in _THERE])
        if refused:
            self._refuse([document for document, _ in refused], str(refused[0][1].get("error")))
        return again

    def _took(self, documents: Sequence[Documents]) -> None:
        self._taken += lines_of(documents)
        count(SHIPPED, documents)

    def _refuse(self, documents: Sequence[Documents], why: str) -> None:
        count(REFUSED, documents)
        log.warning("Elasticsearch takes some lines never", lines=lines_of(documents), error=why[:500])


def _is_for_later(item: Mapping[str, Any]) -> bool:
    return item["status"] in _LATER or item["status"] >= _ITS_OWN


def _is_for_good(item: Mapping[str, Any]) -> bool:
    return item["status"] not in _THERE and not _is_for_later(item)
