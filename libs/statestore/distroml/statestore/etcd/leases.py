"""Leases that no outage ends: etcd keeps and renews them, and the processes that have the store open judge them.

By itself etcd would revoke every lease at once when it had stood still for longer than their ttls: it takes its own
silence for the holders'. So etcd's lease is one of a month, which in truth only keeps count of the time since its last
renewal, and `Judge` ends it after its real ttl, as for the embedded stores: whoever got no answer from etcd for more
than a third of a ttl first grants a full one. A renewal stays one message to etcd that writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distroml.statestore.etcd import ops
from distroml.statestore.etcd.client import EtcdClient
from distroml.statestore.etcd.messages import TxnRequest
from distroml.statestore.liveness import Judge, Lease
from distroml.statestore.port import LeaseGone, StateStoreError

log = logging.getLogger(__name__)

MONTH_S = 30 * 24 * 3600
"""How long a lease lives that nobody judges."""

_NAME = "lease-"
# Eight times in the shortest ttl: a judge that is a little late does not yet take itself for one that stood still.
_SWEEPS, _SWEEP_LEAST_S, _SWEEP_MOST_S = 8, 0.125, 2.0
_ASKED_AT_ONCE = 100
_BOOT = "this process"


@dataclass(frozen=True, slots=True)
class _Known:
    """What was last heard of a lease: its ttl, and when it was renewed by this process's clock."""

    ttl_s: int
    renewed: float


class Leases:
    """Leases of one deployment. Their ttls lie below `prefix`, each in a key that ends with its lease."""

    def __init__(self, client: EtcdClient, prefix: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._prefix, self._clock = client, prefix.encode(), clock
        self._known: dict[int, _Known] = {}

    async def grant(self, ttl_s: int) -> str:
        """A new lease; where we end in the middle of this, one stays behind that has no key and ends after a month."""
        id = await self._client.grant(MONTH_S)
        name = name_of(id)
        await self._client.txn(
            TxnRequest(success=(ops.put(self._prefix + name.encode(), b"%d" % ttl_s, id),)), repeatable=True
        )
        return name

    async def keep_alive(self, lease: str) -> None:
        """Renew a lease for a full ttl; raises `LeaseGone`."""
        await self._client.keep_alive(id_of(lease))

    async def revoke(self, lease: str) -> None:
        """End a lease and delete its keys; ending a dead lease is no error."""
        try:
            await self._client.revoke(id_of(lease))
        except LeaseGone:
            return

    async def judge(self, ended: asyncio.Event) -> None:
        """End leases that are over, until `ended` is set."""
        judge = Judge(_BOOT, self._clock())
        while not ended.is_set():
            try:
                leases = await self._heard()
                # Only here has etcd answered everything: the time since the last such moment is its silence, or ours.
                for lease in judge.sweep(self._clock(), leases):
                    await self.revoke(lease)
            except StateStoreError as error:
                if not ended.is_set():
                    log.warning("leases are not judged until etcd answers again: %s", error)
            except Exception:
                # Without a judge a dead holder's lease would live on for a month.
                log.exception("leases could not be judged; trying again")
            shortest_s = min((known.ttl_s for known in self._known.values()), default=2)
            pause_s = min(max(shortest_s / _SWEEPS, _SWEEP_LEAST_S), _SWEEP_MOST_S)
            try:
                await asyncio.wait_for(ended.wait(), pause_s)
            except TimeoutError:
                continue

    async def _heard(self) -> Sequence[Lease]:
        """Every living lease that may be over since we last heard of it, with its last renewal as etcd tells it now.

        Others are not judged: by the time etcd has answered, more than a ttl may have passed since what is known of
        them, in which they were renewed. They are asked for in the next round.
        """
        found, _ = await self._client.range_all(self._prefix)
        ttls = {id_of(kv.key.decode()[len(self._prefix) :]): int(kv.value) for kv in found}
        self._known = {id: known for id, known in self._known.items() if id in ttls}
        silent = [
            id
            for id, ttl_s in ttls.items()
            if (known := self._known.get(id)) is None or self._clock() - known.renewed > ttl_s - _SWEEP_LEAST_S
        ]
        ages: dict[int, int | None] = {}
        for start in range(0, len(silent), _ASKED_AT_ONCE):
            some = silent[start : start + _ASKED_AT_ONCE]
            ages |= zip(some, await asyncio.gather(*map(self._client.age_s, some)), strict=True)
        now = self._clock()
        asked: list[Lease] = []
        for id, age_s in ages.items():
            if age_s is None:
                self._known.pop(id, None)
                continue
            # Ages are whole seconds, rounded up: in the middle of the last one they exceed a ttl exactly when the true
            # age does. They are as old as the answers, which errs in the holders' favour.
            known = self._known[id] = _Known(ttls[id], now - max(age_s - 0.5, 0))
            asked.append(Lease(name_of(id), known.ttl_s, known.renewed, _BOOT))
        return asked


def name_of(id: int) -> str:
    """The port's name of an etcd lease."""
    return f"{_NAME}{id:016x}"


def id_of(lease: str) -> int:
    """The etcd lease of a name; raises `LeaseGone` for what was never the name of one."""
    try:
        return int(lease.removeprefix(_NAME), 16)
    except ValueError:
        raise LeaseGone(f"{lease!r} is no lease of this store") from None
