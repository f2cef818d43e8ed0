"""Changes for speed that have to show it: on a host of its own, codes cost more than the model thinks."""

import dataclasses
from itertools import pairwise

import pytest

from distroml.runtime.compress.control import Measured, Probe, Seen, decide, first, with_changes
from distroml.runtime.compress.control.model import Beaten
from distroml.runtime.compress.control.penalties import rung
from libs.runtime.tests.compress.events import Happened, happen
from libs.runtime.tests.compress.synthetic import Training, mbit, setting

# On which a bit is promised, and not much.
RATE = 3000
DENSE = [setting(buckets=1).buckets[0].offers[0]]


def dearer(times):
    """Steps that compress anything take so many times as long as steps that do not, whatever is measured."""

    def happens(truth, link, compute_s, offers):
        found = happen(truth, link, compute_s, offers)
        if all(offer.scheme == "none" for offer in offers):
            return found
        plain = happen(truth, link, compute_s, [bucket.offers[0] for bucket in truth.buckets])
        return Happened(times * plain.step_s, found.exposed_s)

    return happens


def trained(times, steps, noise=0.02, seed=0, rate=RATE):
    training = Training(
        setting(buckets=1), lambda step: mbit(rate(step) if callable(rate) else rate), noise=noise, seed=seed,
        happens=dearer(times),
    )  # fmt: skip
    training.run(steps)
    return training


def lossy_steps(training, begin, end):
    return sum(set(training.schemes[step]) != {"none"} for step in range(begin, end))


@pytest.mark.parametrize("seed", range(3))
def test_a_change_that_is_no_faster_is_taken_back_to_what_was_before_and_tried_again_later(seed):
    training = trained(1.03, 500, seed=seed)
    assert training.changes[0].reason == "Faster"
    first_try, back = ([c for c in training.changes if c.reason == reason] for reason in ("Faster", "NotFaster"))
    assert len({change.from_step for change in back}) == len({change.from_step for change in first_try}) == 4
    assert all(change.to_scheme == "none" for change in back)
    tried = sorted({change.from_step for change in first_try})
    for number, (one, again) in enumerate(pairwise(tried)):
        assert again - one >= 50 << number, "after twice as long each time"
    assert lossy_steps(training, 1, 500) <= 4 * 16
    assert "and took" in back[0].why


@pytest.mark.parametrize("seed", range(3))
def test_a_change_that_is_faster_stays(seed):
    training = trained(0.85, 200, seed=seed)
    assert {change.reason for change in training.changes} == {"Faster"}
    assert lossy_steps(training, 50, 200) == 150


def test_steps_have_to_be_shorter_by_more_than_a_scheme_needs_more_of_them():
    """`int8` takes 0.9 % more steps to a loss."""
    work = setting(buckets=1)
    for step_s, kept in ((0.197, True), (0.1995, False)):
        state = first(work, mbit(1000), 0.2)
        watched = tuple(dataclasses.replace(one, scheme="int8") for one in state.buckets)
        state = dataclasses.replace(state, buckets=watched, left=("none",), from_step=1, step_before_s=0.2)
        found = []
        for step in range(2, 20):
            state, changes = decide(work, state, Measured(step, step_s, 3.0, (Seen(0.04, 0.01),)))
            found += changes
            if changes:
                break
        assert ([change.reason for change in found] == []) == kept
        assert state.step_before_s == 0


def test_a_link_that_becomes_slow_is_followed_at_once_by_what_was_no_faster_before():
    training = trained(1.03, 130, rate=lambda step: RATE if step < 80 else 20)
    assert [change.reason for change in training.changes if change.from_step < 80][-1] == "NotFaster"
    later = [change for change in training.changes if change.from_step >= 80]
    assert later[0].reason == "LinkSlower"
    assert later[0].from_step <= 90
    assert min(map(rung, training.schemes[100])) >= rung("int4")


def test_a_link_that_is_seen_to_be_faster_meanwhile_does_not_prove_a_change():
    work = setting(buckets=1)
    state = first(work, mbit(1000), 0.2)
    watched = tuple(dataclasses.replace(one, scheme="int8") for one in state.buckets)
    state = dataclasses.replace(state, buckets=watched, left=("none",), from_step=1, step_before_s=0.2, link=mbit(200))
    told = []
    for step in range(2, 30):
        probe = Probe(1 << 20, 4.4e-3) if step in (4, 5) else None
        state, changes = decide(work, state, Measured(step, 0.21, 3.0, (Seen(0.0, 0.0),), probe))
        told += changes
        if changes:
            break
    assert state.link.s_per_byte == pytest.approx(mbit(2000).s_per_byte, rel=0.1)
    assert [(change.reason, change.to_scheme) for change in told] == [("NotFaster", "none")]


@pytest.mark.parametrize(("shown_at", "kept"), [(15_000, True), (5_000, False)])
def test_what_steps_have_shown_to_be_slower_is_not_taken_because_a_model_says_so(shown_at, kept):
    """On a link on which plain sums seem to hide: little faster than when they were slower, or far faster."""
    work, link = setting(buckets=1), mbit(20_000)
    (offer,) = [one for one in work.buckets[0].offers if one.scheme == "int8"]
    state = first(work, link, 0.2)
    watched = tuple(dataclasses.replace(one, scheme="int8") for one in state.buckets)
    state = dataclasses.replace(
        state, buckets=watched, left=("none",), from_step=1, beaten=Beaten(("none",), mbit(shown_at).s_per_byte)
    )
    told = []
    for step in range(2, 60):
        seen = Seen(link.latency_s + offer.sent_bytes * link.s_per_byte, 0.001, latency_s=link.latency_s)
        state, changes = decide(work, state, Measured(step, 0.21, 3.0, (seen,)))
        told += changes
    assert [change.to_scheme for change in told] == ([] if kept else ["none"])


def test_a_change_that_is_made_again_still_has_to_show_it():
    """As where a worker is killed just after it: its steps are compared with those before the checkpoint."""
    training = trained(1.03, 60)
    (tried,), (back,) = ([c for c in training.changes if c.reason == reason] for reason in ("Faster", "NotFaster"))
    until = Training(training.setting, training.link, noise=0.02, happens=training.happens)
    state = until.run(tried.from_step - training.setting.lead - 1)
    again = with_changes(state, [tried])
    assert again.schemes == (tried.to_scheme,)
    assert again.step_before_s == pytest.approx(until.happens(until.setting, mbit(RATE), 0.2, DENSE).step_s, rel=0.1)
    left = with_changes(again, [back])
    assert left.step_before_s == 0
    assert left.refuted is not None
    assert (left.refuted.schemes, left.refuted.until, left.refuted.times) == (("none",), back.from_step + 50, 1)
