"""Work that one replica at a time may do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from distroml.eventstore import Guard
from distroml.rpc.leases import acquire, lease_held
from distroml.statestore import StateStore


async def under_lease(
    store: StateStore, key: str, holder: str, ttl_s: int, work: Callable[[Guard], Awaitable[None]]
) -> None:
    """Run `work` while this process holds the lease `key`, waiting for it first; again when it was lost.

    `work` gets the guard that its commits must hold to: a replica that stood still and lost the lease can commit
    nothing any more. Returns when `work` does, raises what it raises.
    """
    while True:
        lease, guard = await acquire(store, key, holder=holder, ttl_s=ttl_s)
        try:
            with lease_held(key):
                if await _work_and_renew(store, lease, ttl_s, work(guard)):
                    return
        finally:
            await store.revoke(lease)


async def _work_and_renew(store: StateStore, lease: str, ttl_s: int, work: Awaitable[None]) -> bool:
    """True when the work came to its end, False when the lease was lost under it."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(ttl_s / 3)
            await store.keep_alive(lease)

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(renew())
    working, renewing = tasks
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(working, renewing, return_exceptions=True)
