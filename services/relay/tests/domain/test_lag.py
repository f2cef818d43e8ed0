from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distroml.relay.domain.lag import Lag


def test_nothing_waits_in_a_log_that_has_all() -> None:
    assert Lag().looked(head=0, published=0, now_s=1.0).seconds(9.0) == 0
    assert Lag().looked(head=7, published=7, now_s=1.0).seconds(9.0) == 0


def test_a_log_that_stands_still_falls_behind_by_the_clock() -> None:
    lag = Lag().looked(7, 3, now_s=10.0).looked(9, 3, now_s=11.0).looked(9, 6, now_s=12.0)
    assert lag.seconds(13.0) == 3.0


def test_a_log_that_moves_is_behind_by_one_look_only() -> None:
    lag = Lag()
    for second in range(100):
        lag = lag.looked(head=10 * second + 10, published=10 * second, now_s=float(second))
        assert lag.seconds(second + 1.0) <= 2.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30))
def test_it_is_never_negative_and_zero_once_all_is_there(looks: list[tuple[int, int]]) -> None:
    lag, head, published = Lag(), 0, 0
    for now, (committed, done) in enumerate(looks):
        head += committed
        published = min(head, published + done)
        lag = lag.looked(head, published, float(now))
        assert lag.seconds(float(now)) >= 0
    assert lag.looked(head, head, 99.0).seconds(100.0) == 0
