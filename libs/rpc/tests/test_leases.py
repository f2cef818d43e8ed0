"""Taking a lease: one has it, and who waits disturbs nobody."""

import asyncio

from distroml.rpc.leases import acquire
from distroml.statestore import StateStoreDown
from distroml.statestore.memory import open_state_store

KEY = "leases/test"


class Seen:
    """A state store that says when it was looked at, and may fail to answer a write."""

    def __init__(self, store):
        self._store, self.looks, self.is_mute = store, asyncio.Queue(), False

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def get(self, key):
        found = await self._store.get(key)
        self.looks.put_nowait(found)
        return found

    async def cas(self, key, value, *, expected, lease=""):
        entry = await self._store.cas(key, value, expected=expected, lease=lease)
        if self.is_mute:
            raise StateStoreDown("the answer is lost")
        return entry


async def test_whoever_waits_for_a_lease_writes_nothing():
    store = Seen(open_state_store())
    lease, guard = await acquire(store, KEY, holder="a", ttl_s=30)
    held = await store.get(KEY)
    assert held is not None
    assert (held.value, held.lease, guard.revision) == (b"a", lease, held.revision)
    revision = (await store.list("")).revision
    store.looks = asyncio.Queue()
    waiting = asyncio.create_task(acquire(store, KEY, holder="b", ttl_s=1))
    async with asyncio.timeout(20):
        for _ in range(3):
            await store.looks.get()
        assert (await store.list("")).revision == revision
        await store.revoke(lease)
        await waiting
    held = await store.get(KEY)
    assert held is not None
    assert held.value == b"b"
    await store.close()


async def test_a_lease_whose_taking_failed_holds_up_nobody():
    store = Seen(open_state_store())
    store.is_mute = True
    try:
        await acquire(store, KEY, holder="a", ttl_s=30)
    except StateStoreDown:
        store.is_mute = False
    async with asyncio.timeout(20):
        await acquire(store, KEY, holder="b", ttl_s=30)
    await store.close()
