"""The adaptive controller on synthetic links: it follows them, keeps still where they only scatter, does no harm."""

import dataclasses
import math
import random
import statistics
from itertools import pairwise, product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.runtime.compress.control import (
    LADDER,
    Bucket,
    Change,
    Link,
    Measured,
    Offer,
    Replay,
    Seen,
    Setting,
    State,
    begun,
    decide,
    first,
    gain,
    link_of,
)
from distroml.runtime.compress.control.choosing import choose, judge, offers_of
from distroml.runtime.compress.control.penalties import rung
from distroml.runtime.compress.control.timing import timing
from libs.runtime.tests.compress.events import happen
from libs.runtime.tests.compress.synthetic import Training, happened, mbit, setting

RATES = st.sampled_from([10, 25, 50, 100, 200, 500, 1000, 10_000])
FAST = {"none"}


def lossiest(schemes):
    return max(map(rung, schemes))


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(10, 6.5, 8.5), (100, 4.0, 5.5), (1000, 1.0, 1.3), (1e5, 1.0, 1.0)]
)
def test_the_first_choice_already_fits_the_link(rate, least, most):
    """Beside a dense step: speed-ups that the model promises, and no loss where nothing is to be won."""
    work = setting()
    state = first(work, mbit(rate), 0.2)
    dense = timing(work, mbit(rate), 0.2, offers_of(work, ["none"] * 4)).step_s
    chosen = timing(work, mbit(rate), 0.2, offers_of(work, state.schemes)).step_s
    limit = dense / 0.2
    assert chosen <= dense
    assert dense / chosen >= min(least, 0.8 * limit)
    if rate >= 1e5:
        assert set(state.schemes) == FAST
        assert begun(state) == ()
    else:
        said = begun(state)
        assert {change.bucket for change in said} == {n for n, s in enumerate(state.schemes) if s != "none"}
        assert all(change.from_step == 1 and change.why.endswith("bit/s") for change in said)


@given(rate=st.floats(1000, 50_000), slows=st.floats(0, 1), buckets=st.integers(1, 5))
def test_the_first_choice_has_to_be_surely_worth_it(rate, slows, buckets):
    """Where little is promised, steps without it are measured first."""
    work = setting(buckets=buckets, slows=slows)
    state = first(work, mbit(rate), 0.2)
    begun, dense = (
        judge(work, mbit(rate), 0.2, offers_of(work, schemes)) for schemes in (state.schemes, ["none"] * buckets)
    )
    assert begun.offers == dense.offers or 1.25 * begun.to_loss_s <= dense.to_loss_s


def test_a_bucket_that_hides_behind_the_pass_loses_less_than_the_last_one():
    schemes = [offer.scheme for offer in choose(setting(), mbit(1000), 0.2, [-1] * 4).offers]
    assert [rung(s) for s in schemes] == sorted(rung(s) for s in schemes)
    assert schemes[0] == "none"
    assert schemes[-1] != "none"


@given(rate=RATES, compute_s=st.floats(0.01, 5.0), buckets=st.integers(1, 6), slows=st.floats(0, 1))
def test_no_single_bucket_could_be_less_lossy_for_free_and_no_choice_is_slower_than_none(
    rate, compute_s, buckets, slows
):
    work = setting(buckets=buckets, slows=slows)
    found = choose(work, mbit(rate), compute_s, [-1] * buckets)
    dense = judge(work, mbit(rate), compute_s, [bucket.offers[0] for bucket in work.buckets])
    assert found.to_loss_s <= dense.to_loss_s
    if dense.hidden:
        assert found.offers == dense.offers
    for number, offer in enumerate(found.offers):
        for other in work.buckets[number].offers[: rung(offer.scheme)]:
            freed = judge(work, mbit(rate), compute_s, [*found.offers[:number], other, *found.offers[number + 1 :]])
            assert freed.to_loss_s > found.to_loss_s * 0.999 or not freed.hidden or not found.hidden


@given(rate=st.floats(5_000, 100_000), noise=st.floats(0, 0.3), seed=st.integers(0, 99), buckets=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost_on_a_fast_link(rate, noise, seed, buckets):
    training = Training(setting(buckets=buckets), lambda step: mbit(rate), compute_s=2.0, noise=noise, seed=seed)
    training.run(200)
    assert training.changes == []
    assert all(set(schemes) == FAST for schemes in training.schemes.values())
    assert training.probes == {}


@given(rate=RATES, noise=st.floats(0, 0.2), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_scatter_alone_changes_little(rate, noise, seed):
    training = Training(setting(), lambda step: mbit(rate), noise=noise, seed=seed)
    training.run(400)
    assert len({change.from_step for change in training.changes}) <= 6


@given(seed=st.integers(0, 999), noise=st.floats(0.5, 1.5))
@settings(max_examples=20, deadline=None)
def test_even_on_a_link_without_any_order_changes_are_bounded(seed, noise):
    training = Training(setting(), lambda step: mbit(100), noise=noise, seed=seed)
    training.run(300)
    at = sorted({change.from_step for change in training.changes})
    assert all(later - earlier >= training.setting.lead for earlier, later in pairwise(at))


@pytest.mark.parametrize("seed", range(3))
def test_probes_that_see_a_faster_link_than_exchanges_do_not_make_it_go_back_and_forth(seed):
    training = Training(setting(buckets=1), lambda step: mbit(5_000), noise=0.1, seed=seed, probed=lambda size: 4.0)
    training.run(800)
    assert len({change.from_step for change in training.changes}) <= 8


@given(before=RATES, after=RATES, at=st.integers(60, 99), noise=st.floats(0, 0.1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_change_of_the_link_is_followed_within_forty_steps(before, after, at, noise, seed):
    work = setting()
    training = Training(work, lambda step: mbit(before if step < at else after), noise=noise, seed=seed)
    training.run(at + 40)
    fresh = first(work, mbit(after), 0.2)
    best = judge(work, mbit(after), 0.2, offers_of(work, fresh.schemes))
    held = judge(work, mbit(after), 0.2, offers_of(work, training.schemes[at + 40]))
    assert held.to_loss_s <= 1.1 * best.to_loss_s
    if best.penalty == 1.0 and after >= 10 * before:
        assert held.penalty <= 1.02


def best_that_happens(truth, link, late):
    """The least seconds to a loss with one scheme for early buckets and one for late ones."""
    names = [one.scheme for one in LADDER]
    return min(
        happened(truth, link, [other if number in late else one for number in range(len(truth.buckets))])
        for one in names
        for other in (names if 0 < len(late) < len(truth.buckets) else [one])
    )


@pytest.mark.parametrize("late", [(), (3,), (2, 3), (0, 1, 2, 3)], ids=["none", "last", "half", "all"])
def test_its_choice_is_near_the_best_where_steps_take_what_events_come_to(late):
    """Gradients come unevenly, threads share a core or not, and a change of the link is followed in forty steps."""
    chance = random.Random(len(late))
    over = []
    for slows, (before, after) in product((0.0, 1.0), ((10, 200), (100, 1000), (1000, 50), (10_000, 100))):
        work = setting(late=late, slows=slows)
        shifts = [0.0 if number in late else chance.uniform(-0.08, 0.08) for number in range(4)]
        moved = [
            dataclasses.replace(bucket, ready=min(1.0, bucket.ready + shift))
            for bucket, shift in zip(work.buckets, shifts, strict=True)
        ]
        truth = dataclasses.replace(work, buckets=tuple(moved))
        training = Training(
            work,
            lambda step, before=before, after=after: mbit(before if step < 60 else after),
            noise=0.05,
            seed=chance.randrange(100),
            happens=happen,
            truth=truth,
        )
        training.run(100)
        for step, rate in ((59, before), (100, after)):
            found = happened(truth, mbit(rate), training.schemes[step])
            over.append(found / best_that_happens(truth, mbit(rate), late))
    assert max(over) < 1.2
    assert statistics.fmean(over) < 1.06


def test_late_buckets_that_are_taken_for_early_ones_cost_time():
    """What a bucket's place in the pass is for: the controller cannot find out by itself that nothing hides it."""
    truth = setting(late=(0, 1, 2, 3))
    courses = []
    for told in (truth, setting()):
        training = Training(told, lambda step: mbit(1000), happens=happen, truth=truth)
        training.run(100)
        courses.append(happened(truth, mbit(1000), training.schemes[100]))
    assert courses[0] < 0.9 * courses[1]


def test_two_dense_steps_on_a_link_that_collapsed_are_enough():
    training = Training(setting(), lambda step: mbit(10_000 if step < 50 else 10))
    training.run(60)
    assert training.changes[0].from_step <= 50 + 1 + training.setting.lead
    assert training.changes[0].reason == "LinkSlower"


@pytest.mark.parametrize(
    ("before", "after", "most"), [(1000, 50, 10), (10_000, 100, 6), (50, 1000, 25), (100, 10_000, 25)]
)
def test_a_slow_link_shows_at_the_next_look_and_a_fast_one_at_the_next_probe(before, after, most):
    """So few steps before the first scheme is another, and forty before no more are for the link's sake."""
    for seed in range(3):
        changed = 61 + 7 * seed
        training = Training(
            setting(), lambda step, at=changed: mbit(before if step < at else after), noise=0.1, seed=seed
        )
        training.run(changed + 60)
        later = [change for change in training.changes if change.from_step > changed]
        assert later[0].reason == ("LinkSlower" if after < before else "LinkFaster")
        assert later[0].from_step <= changed + most
        assert [change for change in later if change.reason.startswith("Link")][-1].from_step <= changed + 40


def test_what_changes_say_is_in_units_that_people_read():
    training = Training(setting(), lambda step: mbit(2_000 if step < 50 else 8), compute_s=0.9)
    training.run(60)
    slower = next(change for change in training.changes if change.reason == "LinkSlower")
    assert slower.why.startswith("the links do 8 Mbit/s: a step of 20.1 s becomes one of 1.09 s")
    assert begun(first(setting(), mbit(2_000), 0.01))[0].why == "the links between the ranks do 2 Gbit/s"


@given(rate=RATES, noise=st.floats(0, 0.5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_equal_measurements_give_equal_decisions_and_states_survive_json(rate, noise, seed):
    work = setting()
    one, other = (Training(work, lambda step: mbit(rate), noise=noise, seed=seed) for _ in range(2))
    state = one.run(80)
    assert other.run(80) == state
    assert one.changes == other.changes
    assert msgspec.json.decode(msgspec.json.encode(state), type=State) == state
    assert len(msgspec.json.encode(state)) < 2_000


def grows_without_end(step, scheme, seen):
    return dataclasses.replace(seen, residual_norm=step / 20) if scheme.startswith("powersgd") else seen


def too_large(step, scheme, seen):
    return dataclasses.replace(seen, residual_norm=1e3) if scheme.startswith("powersgd") else seen


def astray(step, scheme, seen):
    lost = seen.cosine is not None and scheme.startswith("powersgd")
    return dataclasses.replace(seen, cosine=-0.3) if lost else seen


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(grows_without_end, "ResidualTrend"), (too_large, "ResidualCeiling"), (astray, "Direction")],
)
def test_a_scheme_that_does_harm_is_left_for_a_less_lossy_one_and_kept_from(harm, reason):
    training = Training(setting(buckets=1), lambda step: mbit(10), harm=harm)
    start = first(training.setting, mbit(10), 0.2).schemes
    training.run(900)
    trips = [change for change in training.changes if change.reason == reason]
    assert trips
    assert all(rung(change.to_scheme) < rung(change.from_scheme) for change in trips)
    assert trips[0].from_scheme == start[0]
    after = [
        schemes for step, schemes in training.schemes.items() if trips[0].from_step <= step < trips[0].from_step + 150
    ]
    assert all(lossiest(schemes) <= rung(trips[0].to_scheme) for schemes in after)


def test_a_loss_that_rises_steps_every_lossy_bucket_back_once_at_a_time():
    training = Training(
        setting(), lambda step: mbit(10), loss=lambda step: 3.0 if step < 100 else 3.0 + 0.02 * (step - 100)
    )
    training.run(150)
    rose = [change for change in training.changes if change.reason == "LossRose"]
    assert {change.bucket for change in rose} == {0, 1, 2, 3}
    steps = sorted({change.from_step for change in rose})
    assert all(later - earlier >= 16 for earlier, later in pairwise(steps))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_decide_nothing(bad):
    work = setting(buckets=1)
    state = first(work, mbit(10), 0.2)
    for measured in (
        Measured(30, bad, 1.0, (Seen(0.1, 0.1),)),
        Measured(30, 0.3, 1.0, (Seen(bad, 0.1),)),
    ):
        assert decide(work, state, measured) == (dataclasses.replace(state, step=30), ())
    _, changes = decide(work, state, Measured(30, 0.3, bad, (Seen(0.2, 0.1, bad, bad, bad),)))
    assert changes == ()
    with pytest.raises(ValueError, match="2 buckets were measured, the layout has 1"):
        decide(work, state, Measured(30, 0.3, 1.0, (Seen(0.1, 0.1),) * 2))


def test_what_auto_would_gain_is_told_only_where_it_is_worth_it():
    work = setting()
    dense = offers_of(work, ["none"] * 4)
    for rate, told in ((10, True), (100, True), (100_000, False)):
        found = timing(work, mbit(rate), 0.2, dense)
        gained = gain(work, mbit(rate), found.step_s, found.exposed_s)
        assert (gained is not None) == told
        if gained is not None:
            assert gained.faster > 1.5
            assert gained.auto_step_s < gained.step_s
            assert gained.exposed > 0.1
    assert gain(work, mbit(10), 0.0, 0.0) is None


@pytest.mark.parametrize("late", [(), (2, 3), (0, 1, 2, 3)], ids=["evenly", "two late", "all late"])
def test_the_link_is_read_from_a_dense_run(late):
    work = setting(late=late)
    found = timing(work, mbit(100), 0.2, offers_of(work, ["none"] * 4))
    link = link_of(work, found.step_s, found.exposed_s)
    assert link.s_per_byte == pytest.approx(mbit(100).s_per_byte, rel=0.01)


def test_recorded_changes_are_used_again_at_their_steps():
    changes = [
        Change(0, "none", "int8", "LinkSlower", "", 10),
        Change(1, "none", "bf16", "LinkSlower", "", 10),
        Change(0, "int8", "none", "LinkFaster", "", 30),
    ]
    replay = Replay(["none", "none"], reversed(changes))
    assert [replay.schemes(step) for step in (1, 9, 10, 29, 30)] == [
        ("none", "none"), ("none", "none"), ("int8", "bf16"), ("int8", "bf16"), ("none", "bf16"),
    ]  # fmt: skip
    assert {change.bucket for change in replay.at(10)} == {0, 1}
    assert replay.between(10, 30) == (changes[2],)
    assert replay.last_step == 30
    assert Replay(["none"]).last_step == 0


def test_the_ladder_goes_from_nothing_lost_to_most_lost():
    assert LADDER[0].scheme == "none"
    assert LADDER[0].extra == 0
    assert [one.extra for one in LADDER] == sorted(one.extra for one in LADDER)
    assert len({one.scheme for one in LADDER}) == len(LADDER)


def test_a_scheme_that_is_not_offered_is_refused_by_name():
    work = Setting((Bucket(8, 1.0, (Offer("none", 32),)),))
    with pytest.raises(ValueError, match="'int8' is not offered"):
        offers_of(work, ["int8"])
    assert first(work, Link(0.0, 1e-3), 0.1).schemes == ("none",)
