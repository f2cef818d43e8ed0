from __future__ import annotations

from distroml.rpc import Backoff


def test_waits_grow_to_their_bound_and_are_spread() -> None:
    backoff = Backoff(0.1, 1.0)
    waits = [backoff.step() for _ in range(8)]
    for wait, longest in zip(waits, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0), strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == len(waits)


def test_success_begins_anew() -> None:
    backoff = Backoff(0.1, 1.0)
    for _ in range(5):
        backoff.step()
    backoff.reset()
    assert backoff.step() <= 0.1
