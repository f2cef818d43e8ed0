"""How often the controller looks: at every step while something may change, then at few; nothing is lost."""

import math
from dataclasses import replace

from distroml.runtime.compress.control import PROBE_EVERY, looks, sampled_bucket, times
from distroml.runtime.compress.control.estimating import LOOK_EVERY
from libs.runtime.tests.compress.synthetic import Training, mbit, setting


def trained(steps, rate=100.0, **more):
    training = Training(setting(), lambda step: mbit(rate(step) if callable(rate) else rate), **more)
    return training, training.run(steps)


def test_every_step_is_looked_at_until_nothing_has_changed_for_long_then_at_few():
    training, _ = trained(400)
    last = max(change.from_step for change in training.changes) if training.changes else 1
    assert training.looked[: last + 23] == list(range(1, last + 24))
    rest = [step for step in training.looked if step >= last + 24]
    assert rest == [step for step in range(last + 24, 401) if step % LOOK_EVERY == 0 or step % PROBE_EVERY == 0]


def test_exchanges_are_timed_for_every_step_while_the_link_is_in_doubt() -> None:
    _, state = trained(400)
    assert [step for step in range(401, 441) if times(state, step)] == [408, 416, 424, 432, 440]
    doubting = replace(state, doubt=1, doubt_log=1.0)
    assert all(times(doubting, step) for step in range(401, 441))
    # Nobody asks then.
    quelled = replace(doubting, quelled=4)
    assert [step for step in range(401, 441) if times(quelled, step)] == [
        step for step in range(401, 441) if looks(quelled, step)
    ]


def test_probes_and_samples_fall_on_steps_that_are_looked_at():
    training, state = trained(400)
    assert [step for step in training.probes if step > 200] == list(range(220, 401, PROBE_EVERY))
    sampled = [step for step in range(1, 400) if sampled_bucket(state, step) is not None]
    assert sampled == list(range(LOOK_EVERY, 400, LOOK_EVERY))


def test_a_link_that_changes_after_a_rest_is_looked_at_and_followed_within_40_steps():
    for before, after in ((100, 10), (100, 2000), (5000, 50)):
        training, _ = trained(500, lambda step, b=before, a=after: b if step < 402 else a)
        followed = [change.from_step for change in training.changes if change.from_step > 402]
        assert followed, (before, after)
        assert followed[0] <= 442
        # From the first doubt on, at every step.
        assert len([step for step in training.looked if followed[0] <= step < followed[0] + 24]) == 24


def test_a_loss_that_rises_while_nobody_looks_is_seen_as_soon_as_ever():
    def loss(step):
        return (3.0 + 3.0 / step if step < 302 else 30.0) + 0.01 * math.sin(step)

    training, _ = trained(400, loss=loss)
    tripped = [change for change in training.changes if change.reason == "LossRose"]
    assert 302 < tripped[0].from_step <= 302 + 24


def test_a_residual_that_runs_away_is_seen_after_as_many_steps_as_if_all_were_looked_at():
    def harm(step, scheme, seen):
        return replace(seen, residual_norm=100.0) if step > 250 and scheme != "none" else seen

    training, _ = trained(500, harm=harm)
    tripped = [change for change in training.changes if change.reason == "ResidualCeiling"]
    assert tripped
    assert tripped[0].from_step <= 250 + 60
