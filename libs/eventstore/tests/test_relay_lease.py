"""The lease of the relay: who may work, and when one ends who cannot know whether it still may."""

import asyncio

from distroml.eventstore.relay.lease import under_lease
from distroml.statestore import StateStoreDown
from distroml.statestore.memory import open_state_store

KEY = "leases/relay"


class Unanswering:
    """A state store whose renewals get no answer, or are refused, while `trouble` is set."""

    def __init__(self, store):
        self._store, self.trouble = store, ""

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def keep_alive(self, lease):
        if self.trouble == "silent":
            await asyncio.Event().wait()
        if self.trouble:
            raise StateStoreDown("away")
        await self._store.keep_alive(lease)


class Work:
    """Work that goes on until it is ended."""

    def __init__(self):
        self.begun, self.ended = asyncio.Queue(), asyncio.Event()

    async def __call__(self):
        self.begun.put_nowait(True)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def ends_of_work(trouble):
    store, work = Unanswering(open_state_store()), Work()
    task = asyncio.create_task(under_lease(store, KEY, holder="a", ttl_s=1, work=work))
    async with asyncio.timeout(10):
        await work.begun.get()
        store.trouble = trouble
        await work.ended.wait()
        # It goes on as soon as the store answers again.
        store.trouble = ""
        await work.begun.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await store.get(KEY) is None
    await store.close()


async def test_work_ends_with_a_lease_whose_renewals_get_no_answer():
    await ends_of_work("silent")


async def test_work_ends_with_a_lease_whose_renewals_fail():
    await ends_of_work("refused")
