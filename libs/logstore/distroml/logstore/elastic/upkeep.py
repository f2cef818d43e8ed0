"""Retention of lines: begins new backing indices in time, and deletes those that are too old.

Servers have a module of their own for this, not all of them; ours needs none. Every step does no harm when it is done
twice, and the lease only spares replicas the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from elasticsearch import AsyncElasticsearch, ConflictError, NotFoundError

from distroml.logstore.elastic.client import speaking
from distroml.observability import logger

log = logger(__name__)

LEASES: Final = "distroml-leases"
_INDICES_PER_RETENTION: Final = 10
_SHORTEST_S: Final = 60
_LARGEST_SHARD: Final = "25gb"


@dataclass(frozen=True, slots=True)
class Done:
    """What a round did."""

    rolled: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


class Upkeep:
    """Keeps the data streams of one deployment no longer than `retention_s`, and a tenth of that."""

    def __init__(
        self, client: AsyncElasticsearch, namespace: str, *, retention_s: int, holder: str, lease_s: int = 600
    ) -> None:
        self._client, self._namespace = client, namespace
        self._retention_s, self._holder, self._lease_s = retention_s, holder, lease_s

    async def round(self, now_ms: int) -> Done | None:
        """Do what is due; None where another replica does it.

        Raises:
            LogStoreDown, LogStoreRefused: try again later.
        """
        async with speaking():
            if not await self._lead(now_ms):
                return None
            found = await self._client.indices.resolve_index(
                name=f"logs-distroml.*-{self._namespace}", expand_wildcards="open"
            )
            rolled: list[str] = []
            deleted: list[str] = []
            for stream in found["data_streams"]:
                if await self._roll(stream["name"]):
                    rolled.append(stream["name"])
                deleted += await self._delete_old(stream["backing_indices"], now_ms)
        if rolled or deleted:
            log.info("lines past their retention deleted", rolled=rolled, deleted=deleted)
        return Done(tuple(rolled), tuple(deleted))

    async def _roll(self, stream: str) -> bool:
        """Begin a new index where the stream's is old or large; an empty one stays."""
        age_s = max(_SHORTEST_S, self._retention_s // _INDICES_PER_RETENTION)
        conditions = {"max_age": f"{age_s}s", "max_primary_shard_size": _LARGEST_SHARD, "min_docs": 1}
        answer = await self._client.indices.rollover(alias=stream, conditions=conditions)
        return bool(answer["rolled_over"])

    async def _delete_old(self, indices: list[str], now_ms: int) -> list[str]:
        """Nothing was written to an index after the next one was made. The last is the one that is written to."""
        if len(indices) < 2:
            return []
        answer = await self._client.indices.get_settings(
            index=indices, name="index.creation_date", flat_settings=True, ignore_unavailable=True
        )
        made_ms = {name: int(one["settings"]["index.creation_date"]) for name, one in answer.items()}
        # A stream may have been rolled over since it was listed, so these are in order of their making.
        known = sorted(made_ms, key=lambda name: (made_ms[name], name))
        oldest_ms = now_ms - self._retention_s * 1000
        old = [one for one, following in pairwise(known) if made_ms[following] <= oldest_ms]
        for name in old:
            await self._client.indices.delete(index=name, ignore_unavailable=True)
        return old

    async def _lead(self, now_ms: int) -> bool:
        """Hold the lease, a document that is only replaced as it was read: of two that try, one gets it."""
        lease: dict[str, Any] = {"holder": self._holder, "until_ms": now_ms + self._lease_s * 1000}
        key = f"log-upkeep-{self._namespace}"
        try:
            found = await self._client.get(index=LEASES, id=key)
        except NotFoundError:
            expected: dict[str, Any] = {"op_type": "create"}
        else:
            held: dict[str, Any] = found["_source"]
            if held["holder"] != self._holder and held["until_ms"] > now_ms:
                return False
            expected = {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
        try:
            await self._client.index(index=LEASES, id=key, document=lease, **expected)
        except ConflictError:
            return False
        return True
