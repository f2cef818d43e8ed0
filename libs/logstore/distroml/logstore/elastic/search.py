"""The port over Elasticsearch's search."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from elastic_transport import ObjectApiResponse
from elasticsearch import ApiError, AsyncElasticsearch

from distroml.logstore.elastic.client import check_server, speaking
from distroml.logstore.elastic.document import decode
from distroml.logstore.elastic.template import stream_of
from distroml.logstore.port import Page, Query, page_of

# A new index, and one of a server that has just begun, answers 503 until its shards are placed: for moments.
_PLACING_S: Final = 5.0
_ASK_AGAIN_S: Final = 0.25


class ElasticLogSearch:
    """`LogSearch` over the data stream of one deployment; the client is the caller's, who closes it.

    Args:
        placing_s: how long shards that are not placed yet are waited for.
    """

    def __init__(self, client: AsyncElasticsearch, namespace: str, *, placing_s: float = _PLACING_S) -> None:
        self._client, self._stream, self._placing_s = client, stream_of(namespace), placing_s
        self._checked = False

    async def search(self, query: Query) -> Page:
        """See `LogSearch`. A stream that nobody wrote to yet has no lines."""
        if not self._checked:
            await check_server(self._client)
            self._checked = True
        order = "desc" if query.newest_first else "asc"
        wanted: dict[str, Any] = {}
        if query.after is not None:
            wanted["search_after"] = [query.after.at_ms, query.after.offset, query.after.id]
        async with speaking():
            answer = await self._found(
                index=self._stream,
                ignore_unavailable=True,
                allow_no_indices=True,
                query={"bool": {"filter": _filters(query)}},
                sort=[
                    {"@timestamp": {"order": order, "format": "epoch_millis"}},
                    {"event.sequence": order},
                    {"event.id": order},
                ],
                # One more says whether there is another page. A line that was sent again after a rollover of its
                # stream lies in two indices: there may be less on a page than was asked for.
                size=query.limit + 1,
                track_total_hits=False,
                **wanted,
            )
        lines = [decode(hit["_source"]) for hit in answer["hits"]["hits"]]
        page = page_of(lines, query.limit)
        return Page(tuple(dict.fromkeys(page.lines)), page.cursor)

    async def _found(self, **wanted: Any) -> ObjectApiResponse[Any]:
        until = time.monotonic() + self._placing_s
        while True:
            try:
                return await self._client.search(**wanted)
            except ApiError as error:
                if error.status_code != 503 or time.monotonic() > until:
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)


def _filters(query: Query) -> list[dict[str, Any]]:
    filters: list[dict[str, Any]] = [{"term": {"distroml.job": query.job}}]
    if query.ranks:
        filters.append({"terms": {"distroml.rank": list(query.ranks)}})
    if query.since_ms or query.until_ms:
        times = {"gte": query.since_ms} | ({"lt": query.until_ms} if query.until_ms else {})
        filters.append({"range": {"@timestamp": {**times, "format": "epoch_millis"}}})
    if query.levels:
        filters.append({"terms": {"log.level": list(query.levels)}})
    filters += ({"match_phrase": {"distroml.words": " ".join(phrase)}} for phrase in query.phrases)
    return filters
