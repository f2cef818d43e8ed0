"""The thread of sums: in order, and after a failure nothing more."""

import threading

import pytest

from distroml.runtime.comm.algorithms.lane import Lane
from distroml.runtime.elastic import PeerLost


def test_tasks_are_done_in_order_on_one_other_thread() -> None:
    lane, seen = Lane("test"), []
    for work in [lane.start(lambda n=n: seen.append((n, threading.get_ident()))) for n in range(100)]:
        assert work.wait()
    assert [number for number, _ in seen] == list(range(100))
    assert {thread for _, thread in seen} != {threading.get_ident()}
    assert len({thread for _, thread in seen}) == 1


def test_a_lost_peer_is_told_to_all_who_wait_and_nothing_more_is_tried() -> None:
    lane, seen = Lane("test"), []

    def fail() -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    lost, after = lane.start(fail), lane.start(lambda: seen.append(1))
    for work in (lost, after, lane.start(lambda: seen.append(2))):
        with pytest.raises(PeerLost, match="Connection closed by peer"):
            work.wait()
    assert seen == []


def test_a_mistake_is_raised_as_it_is() -> None:
    lane = Lane("test")

    def fail() -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        lane.start(fail).wait()
    with pytest.raises(PeerLost, match="an earlier exchange failed: no such thing"):
        lane.start(lambda: None).wait()
