"""Feedback: measurements that contradict a prediction correct the next one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.planner import Corrections, Measurement, Plan, Pricer, contradicts, learn
from libs.planner.tests.models import TRAINING, gpt, machines

PLAN = Plan(dp_replicate=2, tp=4, microbatch=2)


def predict(corrections=None):
    return Pricer(gpt(), machines(), TRAINING, 64, corrections=corrections).predict(PLAN)


@given(st.floats(0.3, 4), st.floats(0.3, 4))
def test_what_was_learned_predicts_what_was_measured(slower, larger):
    first = predict()
    measured = Measurement(step_seconds=first.step_seconds * slower, peak_bytes=first.peak_bytes_per_rank * larger)
    second = predict(learn(first, measured))
    assert second.step_seconds == pytest.approx(measured.step_seconds, rel=1e-6)
    assert second.peak_bytes_per_rank == pytest.approx(measured.peak_bytes, rel=1e-6)


def test_a_part_measured_by_itself_gets_its_own_factor():
    first = predict()
    measured = Measurement(
        step_seconds=first.step_seconds + first.seconds["tp"], seconds={"tp": 2 * first.seconds["tp"]}
    )
    found = learn(first, measured).seconds
    assert found["tp"] == pytest.approx(2)
    assert found["compute"] == pytest.approx(1)


def test_later_runs_weigh_against_what_is_known():
    known = learn(predict(), Measurement(step_seconds=predict().step_seconds * 2))
    now = predict(known)
    again = learn(now, Measurement(step_seconds=now.step_seconds * 4), known)
    assert again.seconds["compute"] == pytest.approx(2 * 4**0.5)


def test_one_stalled_run_does_not_teach_nonsense():
    found = learn(predict(), Measurement(step_seconds=predict().step_seconds * 1e4))
    assert max(found.seconds.values()) == 5


def test_contradictions_are_told():
    first = predict()
    assert contradicts(first, Measurement(step_seconds=first.step_seconds * 1.04)) == ""
    text = contradicts(
        first, Measurement(step_seconds=first.step_seconds * 1.5, peak_bytes=first.peak_bytes_per_rank * 0.5)
    )
    assert "a step takes 1.50 times" in text
    assert "the peak of memory is 0.50 times" in text


def test_corrections_are_plain_data():
    found = learn(predict(), Measurement(step_seconds=1.0))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Corrections) == found


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"seconds": {"tpp": 1.0}}, "measured seconds of tpp"),
        ({"step_seconds": -1.0}, "at least 0"),
        ({"step_seconds": float("nan")}, "at least 0"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(values, why):
    with pytest.raises(ValueError, match=why):
        Measurement(**values)
