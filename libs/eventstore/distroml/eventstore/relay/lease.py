"""At most one relay of a deployment works at a time, as far as a lease can tell; the log itself refuses the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from distroml.statestore import CasConflict, LeaseGone, StateStore, StateStoreError

RETRY_S: Final = 0.5


async def under_lease(
    state: StateStore, key: str, *, holder: str, ttl_s: int, work: Callable[[], Awaitable[None]]
) -> None:
    """Run `work` whenever this process holds `key`, until cancelled; the lease is given up at the end.

    Work is ended when the lease is gone, or could not be renewed for as long as it lives. A state store that does not
    answer is asked again; what `work` raises is raised.
    """
    while True:
        lease = await _acquire(state, key, holder, ttl_s)
        keeper = asyncio.create_task(_keep(state, lease, ttl_s))
        worker = asyncio.ensure_future(work())
        try:
            await asyncio.wait({keeper, worker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = worker.done()
            keeper.cancel()
            worker.cancel()
            await asyncio.gather(keeper, worker, return_exceptions=True)
            with suppress(StateStoreError):
                await state.revoke(lease)
        if ended:
            return worker.result()


async def _acquire(state: StateStore, key: str, holder: str, ttl_s: int) -> str:
    while True:
        with suppress(StateStoreError):
            if await state.get(key) is None:
                lease = await state.grant(ttl_s)
                try:
                    await state.cas(key, holder.encode(), expected=0, lease=lease)
                    return lease
                except (CasConflict, LeaseGone):
                    await state.revoke(lease)
        await asyncio.sleep(min(RETRY_S, ttl_s / 4))


async def _keep(state: StateStore, lease: str, ttl_s: int) -> None:
    """Renew until the lease is gone or must be taken for gone."""
    ends = time.monotonic() + ttl_s
    with suppress(TimeoutError):
        while (asked := time.monotonic()) < ends:
            # By then it may be another one's: an answer is not waited for any longer.
            async with asyncio.timeout(ends - asked):
                try:
                    await state.keep_alive(lease)
                    ends = asked + ttl_s
                except LeaseGone:
                    return
                except StateStoreError:
                    pass  # asked again for as long as there is time
            await asyncio.sleep(ttl_s / 3)
