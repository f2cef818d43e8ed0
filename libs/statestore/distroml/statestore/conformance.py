"""The promises of the state store port as tests, for any back end.

A back end's test inherits `StateStoreConformance` and overrides the fixture `store`, and `pass_time` where its
clock can be moved. Needs pytest; nothing else imports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from distroml.statestore.port import CasConflict, Change, LeaseGone, StateStore


async def changes(watch: AsyncIterator[Sequence[Change]], count: int, within_s: float = 5.0) -> list[list[Change]]:
    """The next batches of a watch."""
    found: list[list[Change]] = []
    async with asyncio.timeout(within_s):
        async for batch in watch:
            found.append(list(batch))
            if len(found) == count:
                break
    return found


class StateStoreConformance:
    """Inherit, and override `store` with a new, empty state store."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[StateStore]:
        """An empty store; closed afterwards."""
        raise NotImplementedError
        yield

    async def pass_time(self, store: StateStore, seconds: float) -> None:
        """Let so many seconds pass on the store's clock."""
        del store
        await asyncio.sleep(seconds)

    async def test_an_absent_key(self, store: StateStore):
        assert await store.get("k") is None
        assert (await store.list("")).entries == ()
        with pytest.raises(CasConflict) as caught:
            await store.cas("k", b"v", expected=7)
        assert (caught.value.key, caught.value.expected, caught.value.actual) == ("k", 7, 0)

    async def test_cas_writes_once_per_revision(self, store: StateStore):
        first = await store.cas("k", b"1", expected=0)
        assert await store.get("k") == first
        with pytest.raises(CasConflict):
            await store.cas("k", b"2", expected=0)
        second = await store.cas("k", b"2", expected=first.revision)
        assert second.revision > first.revision
        with pytest.raises(CasConflict) as caught:
            await store.cas("k", b"3", expected=first.revision)
        assert caught.value.actual == second.revision
        assert await store.get("k") == second

    async def test_of_many_writers_of_one_revision_one_wins(self, store: StateStore):
        tries = (store.cas("k", b"%d" % n, expected=0) for n in range(20))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(outcome, CasConflict) for outcome in outcomes) == 19

    async def test_delete_compares_too(self, store: StateStore):
        entry = await store.cas("k", b"1", expected=0)
        with pytest.raises(CasConflict):
            await store.delete("k", expected=entry.revision + 1)
        await store.delete("k", expected=entry.revision)
        assert await store.get("k") is None
        with pytest.raises(CasConflict):
            await store.delete("k", expected=entry.revision)
        again = await store.cas("k", b"2", expected=0)
        assert again.revision > entry.revision

    async def test_list_is_in_key_order_below_the_prefix(self, store: StateStore):
        for key in ("b/2", "a", "b/10", "b", "c", "b/é"):
            await store.cas(key, key.encode(), expected=0)
        listing = await store.list("b/")
        assert [entry.key for entry in listing.entries] == ["b/10", "b/2", "b/é"]
        assert listing.revision >= max(entry.revision for entry in listing.entries)
        assert [entry.key for entry in (await store.list("")).entries] == ["a", "b", "b/10", "b/2", "b/é", "c"]

    @pytest.mark.parametrize("key", ["", "a\nb", "a\0b", "k" * 1025])
    async def test_a_malformed_key_is_refused(self, store: StateStore, key: str):
        with pytest.raises(ValueError, match="no key"):
            await store.cas(key, b"", expected=0)

    async def test_a_value_past_the_bound_is_refused(self, store: StateStore):
        await store.cas("k", b"x" * (1 << 20), expected=0)
        with pytest.raises(ValueError, match="bytes"):
            await store.cas("l", b"x" * ((1 << 20) + 1), expected=0)

    async def test_revoking_a_lease_deletes_its_keys_at_once(self, store: StateStore):
        lease = await store.grant(60)
        await store.cas("m/1", b"", expected=0, lease=lease)
        entry = await store.cas("m/2", b"", expected=0, lease=lease)
        assert entry.lease == lease
        await store.cas("m/3", b"", expected=0)
        start = (await store.list("")).revision
        await store.revoke(lease)
        assert [entry.key for entry in (await store.list("m/")).entries] == ["m/3"]
        ((first, second),) = await changes(store.watch("m/", after=start), 1)
        assert (first.key, first.value, second.key) == ("m/1", None, "m/2")
        assert first.revision == second.revision
        await store.revoke(lease)
        with pytest.raises(LeaseGone):
            await store.keep_alive(lease)
        with pytest.raises(LeaseGone):
            await store.cas("m/4", b"", expected=0, lease=lease)

    async def test_a_key_written_without_its_lease_outlives_it(self, store: StateStore):
        lease = await store.grant(60)
        entry = await store.cas("k", b"1", expected=0, lease=lease)
        await store.cas("k", b"2", expected=entry.revision)
        await store.revoke(lease)
        assert await store.get("k") is not None

    async def test_a_lease_not_renewed_expires_with_its_keys(self, store: StateStore):
        lease = await store.grant(1)
        await store.cas("k", b"", expected=0, lease=lease)
        await self.pass_time(store, 0.5)
        assert await store.get("k") is not None
        await self.pass_time(store, 2)
        assert await store.get("k") is None
        with pytest.raises(LeaseGone):
            await store.keep_alive(lease)

    async def test_a_renewed_lease_lives(self, store: StateStore):
        lease = await store.grant(2)
        await store.cas("k", b"", expected=0, lease=lease)
        for _ in range(4):
            await self.pass_time(store, 1)
            await store.keep_alive(lease)
        assert await store.get("k") is not None

    @pytest.mark.parametrize("ttl", [0, -1])
    async def test_a_ttl_is_at_least_a_second(self, store: StateStore, ttl: int):
        with pytest.raises(ValueError, match="whole seconds"):
            await store.grant(ttl)

    async def test_a_watch_sees_every_change_after_its_start_in_order(self, store: StateStore):
        one = await store.cas("w/1", b"1", expected=0)
        two = await store.cas("w/1", b"2", expected=one.revision)
        await store.cas("other", b"", expected=0)
        waiting = asyncio.create_task(changes(store.watch("w/", after=one.revision), 3))
        await asyncio.sleep(0.05)
        await store.delete("w/1", expected=two.revision)
        three = await store.cas("w/2", b"3", expected=0)
        seen = [(c.key, c.value) for batch in await waiting for c in batch]
        assert seen == [("w/1", b"2"), ("w/1", None), ("w/2", b"3")]
        assert (await waiting)[-1][0].revision == three.revision

    async def test_list_then_watch_misses_nothing(self, store: StateStore):
        await store.cas("w/0", b"", expected=0)
        listing = await store.list("w/")
        await store.cas("w/1", b"", expected=0)
        ((change,),) = await changes(store.watch("w/", after=listing.revision), 1)
        assert change.key == "w/1"

    async def test_closing_the_store_ends_its_watches(self, store: StateStore):
        waiting = asyncio.create_task(changes(store.watch("", after=0), 1))
        await asyncio.sleep(0.05)
        await store.close()
        assert await waiting == []
