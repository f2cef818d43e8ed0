"""The judge of leases, on a clock that the test moves."""

import asyncio
from typing import cast

from distroml.statestore.etcd import EtcdClient
from distroml.statestore.etcd.leases import Leases, name_of
from distroml.statestore.etcd.messages import KeyValue
from distroml.statestore.liveness import Judge, Lease


def lease(ttl=3, renewed=0.0, boot="b"):
    return Lease("l", ttl, renewed, boot)


def swept(judge, until, start, step=0.25, leases=(), **at):
    """Sweep every `step` seconds; the time of the first expiry, or None."""
    now = start
    while now < until:
        now += step
        if judge.sweep(now, leases):
            return now
    return None


def test_a_dead_holder_expires_within_its_ttl_and_a_sweep():
    judge = Judge("b", 0.0)
    assert swept(judge, 10, 0, leases=[]) is None
    expired = swept(judge, 20, 10, leases=[lease(ttl=3, renewed=10.0)])
    assert expired is not None
    assert 13 < expired <= 13.5


def test_a_new_judge_grants_a_full_ttl():
    judge = Judge("b", 100.0)
    expired = swept(judge, 110, 100, leases=[lease(ttl=3, renewed=10.0)])
    assert expired is not None
    assert 103 < expired <= 103.5


def test_a_judge_that_stood_still_grants_a_full_ttl_again():
    judge = Judge("b", 0.0)
    swept(judge, 10, 0)
    assert judge.sweep(70.0, [lease(ttl=3, renewed=9.9)]) == []
    expired = swept(judge, 80, 70, leases=[lease(ttl=3, renewed=9.9)])
    assert expired is not None
    assert 73 < expired <= 73.5


def test_a_third_of_a_ttl_is_the_measure_of_standing_still():
    for gap, extended in ((0.75, False), (1.25, True)):
        judge = Judge("b", 0.0)
        swept(judge, 10, 0)
        judge.sweep(10 + gap, [])
        expired = swept(judge, 20, 10 + gap, leases=[lease(ttl=3, renewed=10.0)])
        assert expired is not None
        assert (expired > 13.7) is extended


def test_each_lease_is_measured_by_its_own_ttl():
    judge = Judge("b", 0.0)
    swept(judge, 100, 0)
    both = [lease(ttl=2, renewed=99.5), Lease("long", 60, 40.5, "b")]
    # One second of standing still is much for a ttl of 2, and nothing for one of 60.
    assert judge.sweep(101.25, both) == ["long"]


def test_small_gaps_after_a_long_one_do_not_hide_it():
    judge = Judge("b", 0.0)
    judge.sweep(100.0, [])
    for n in range(20):
        judge.sweep(100.5 + n * 0.5, [])
    assert judge.sweep(111.0, [Lease("l", 60, 10.0, "b")]) == []
    assert judge.sweep(161.0, [Lease("l", 60, 10.0, "b")]) == []


def test_a_lease_of_another_boot_gets_a_full_ttl_from_now():
    judge = Judge("b", 5.0)
    other = lease(ttl=3, renewed=99999.0, boot="before")
    assert judge.sweep(5.2, [other]) == []
    expired = swept(judge, 15, 5.2, leases=[other])
    assert expired is not None
    assert 8 < expired < 8.6


class SlowEtcd:
    """Two leases that are renewed all the time; the second one is new after a while, and its age is long in coming."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self.revoked: list[int] = []
        self.ended = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def range_all(self, prefix: bytes) -> tuple[list[KeyValue], int]:
        self.now += 0.08
        if self.asked.count(1) > 1 or self.revoked:
            self.ended.set()
        ids = (1, 2) if self.now > 0.87 else (1,)
        return [KeyValue(key=prefix + name_of(id).encode(), value=b"1") for id in ids], 1

    async def age_s(self, id: int) -> int:
        self.asked.append(id)
        self.now += 0.25 if id == 2 else 0
        return 0

    async def revoke(self, id: int) -> None:
        self.revoked.append(id)


async def test_a_lease_is_not_over_because_etcd_was_slow_to_tell_of_another() -> None:
    etcd = SlowEtcd()
    await asyncio.wait_for(Leases(cast("EtcdClient", etcd), "lease/", clock=etcd.clock).judge(etcd.ended), 60)
    assert etcd.asked[:2] == [1, 2]
    assert etcd.revoked == []
