"""What the controller makes of probes, of a busy processor, and of codecs within steps."""

import dataclasses
import itertools
import math

import pytest

from distroml.runtime.compress.control import (
    LADDER,
    PROBE_BYTES,
    first,
    probe_bytes,
)
from libs.runtime.tests.compress.events import happen
from libs.runtime.tests.compress.synthetic import Training, happened, mbit, setting


def test_a_probe_is_made_every_twenty_steps_while_something_is_compressed():
    training = Training(setting(), lambda step: mbit(10))
    training.run(100)
    assert training.probes == dict.fromkeys([20, 40, 60, 80, 100], PROBE_BYTES)


def test_probes_are_larger_where_that_costs_little_of_a_step_and_never_larger_than_a_bucket():
    sizes = {}
    for rate in (10, 300, 1000, 100_000):
        work = setting(buckets=2)
        state = dataclasses.replace(first(work, mbit(10), 0.2), link=mbit(rate))
        sizes[rate] = probe_bytes(work, state, 20)
        assert probe_bytes(work, state, 21) == 0
    assert sizes[10] == sizes[300] == PROBE_BYTES
    assert sizes[1000] == 1 << 20
    assert work.largest_bytes / 2 < sizes[100_000] <= work.largest_bytes
    # Where a probe just showed that the link is another, the next one is for that, and comes soon.
    doubting = dataclasses.replace(state, link=mbit(10), doubt=-1, doubt_log=-math.log(100))
    assert probe_bytes(work, doubting, 21) == 1 << 20
    # Not for ever: doubts that came to nothing make the next one's probes rarer.
    quelled = dataclasses.replace(doubting, quelled=2)
    assert [probe_bytes(work, quelled, step) for step in (21, 22, 23, 24)] == [0, 0, 0, 1 << 20]


def test_what_fits_into_a_cache_and_is_fast_there_does_not_make_it_go_back_and_forth():
    """Ranks of one host: a small probe sees memory that is near, a bucket does not."""
    training = Training(
        setting(buckets=1), lambda step: mbit(5_000, 2e-5), noise=0.05, probed=lambda n: 6.0 if n < 1 << 20 else 1.0
    )
    training.run(400)
    # Once it may find that a little is to be won, and stays with that.
    assert [change.reason for change in training.changes] in ([], ["Faster"])


@pytest.mark.parametrize("rate", [200, 1000])
@pytest.mark.parametrize("busy", [1.0, 3.0])
def test_a_busy_processor_is_not_taken_for_a_slower_link(rate, busy):
    """Codecs and messages wait for it; what the wire itself takes does not change."""
    training = Training(
        setting(buckets=1), lambda step: mbit(rate), noise=0.05, happens=happen, busy=busy, delay_s=3e-3
    )
    state = training.run(100)
    assert not [change for change in training.changes if change.reason.startswith("Link")]
    assert state.link.s_per_byte == pytest.approx(mbit(rate).s_per_byte, rel=0.15)
    assert state.link.latency_s == pytest.approx(mbit(rate).latency_s + 3e-3, rel=0.15)


def test_exchanges_that_were_not_timed_say_nothing_of_the_link():
    """Where codes left early; a part of them is no smaller whole."""
    calls = itertools.count()

    def harm(step, scheme, seen):
        return seen if next(calls) % 4 == 0 else dataclasses.replace(seen, wire_s=0.0)

    training = Training(setting(buckets=4), lambda step: mbit(200), noise=0.05, harm=harm)
    state = training.run(60)
    assert not [change for change in training.changes if change.reason.startswith("Link")]
    assert state.link.s_per_byte == pytest.approx(mbit(200).s_per_byte, rel=0.2)


@pytest.mark.parametrize(("buckets", "slows"), [(1, 0.0), (1, 1.0), (4, 0.0), (4, 1.0)])
def test_what_computing_takes_is_told_from_waiting_and_coding(buckets, slows):
    """Also where codecs of the last bucket are what computing waits for."""
    training = Training(setting(buckets=buckets, slows=slows), lambda step: mbit(200), happens=happen)
    assert training.run(60).compute_s == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("rate", [100, 1000, 3000])
def test_codecs_that_take_longer_within_steps_than_alone_are_reckoned_with(rate):
    work = setting(buckets=1)
    training = Training(work, lambda step: mbit(rate), happens=happen, busy=4.0)
    state = training.run(100)
    assert state.coding == pytest.approx(4.0)
    costly = tuple(dataclasses.replace(offer, codec_s=4 * offer.codec_s) for offer in work.buckets[0].offers)
    truth = dataclasses.replace(work, buckets=(dataclasses.replace(work.buckets[0], offers=costly),))
    best = min(happened(truth, mbit(rate), [one.scheme]) for one in LADDER)
    assert happened(truth, mbit(rate), training.schemes[100]) < 1.06 * best
