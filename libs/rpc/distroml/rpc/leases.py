"""Roles of which one replica at a time has the lease: taking one, and saying in metrics which this process has."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

from distroml.eventstore import Guard
from distroml.observability import names
from distroml.observability.metrics import gauge
from distroml.statestore import CasConflict, LeaseGone, StateStore, StateStoreError

RETRY_S: Final = 0.5
"""How often whoever waits for a lease looks, seconds; oftener for a short one."""

_HELD = gauge(
    names.LEASE_HELD,
    "Whether this replica has the lease of a role and does its work (1), or waits for it (0).",
    (names.LABEL_LEASE,),
)


async def acquire(state: StateStore, key: str, *, holder: str, ttl_s: int) -> tuple[str, Guard]:
    """The lease `key` as soon as nobody has it, and the guard that holds for as long as it is ours.

    Whoever waits writes nothing.
    """
    while True:
        if await state.get(key) is None:
            lease = await state.grant(ttl_s)
            try:
                entry = await state.cas(key, holder.encode(), expected=0, lease=lease)
                return lease, Guard(key, revision=entry.revision)
            except BaseException as error:
                # Whatever became of it: nobody would renew this one.
                with suppress(StateStoreError):
                    await state.revoke(lease)
                if not isinstance(error, CasConflict | LeaseGone):
                    raise
        await asyncio.sleep(min(RETRY_S, ttl_s / 4))


@contextmanager
def lease_held(lease: str) -> Generator[None]:
    """This replica has `lease` for as long as the block lasts."""
    held = _HELD.labels(lease)
    held.set(1)
    try:
        yield
    finally:
        held.set(0)
