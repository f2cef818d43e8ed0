"""The thread of sums: in order, and after a failure nothing more."""

import threading

import pytest
import torch

from distroml.runtime.comm.lane import Lane
from distroml.runtime.elastic import PeerLost


def test_tasks_are_done_in_order_on_one_other_thread() -> None:
    lane, seen = Lane("test", torch.device("cpu")), []
    for work in [lane.start(lambda n=n: seen.append((n, threading.get_ident()))) for n in range(100)]:
        assert work.wait()
    assert [number for number, _ in seen] == list(range(100))
    assert {thread for _, thread in seen} != {threading.get_ident()}
    assert len({thread for _, thread in seen}) == 1


def test_a_lost_peer_is_told_to_all_who_wait_and_nothing_more_is_tried() -> None:
    lane, seen = Lane("test", torch.device("cpu")), []

    def fail() -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    lost, after = lane.start(fail), lane.start(lambda: seen.append(1))
    for work in (lost, after, lane.start(lambda: seen.append(2))):
        with pytest.raises(PeerLost, match="Connection closed by peer"):
            work.wait()
    assert seen == []


def test_a_mistake_is_raised_as_it_is() -> None:
    lane = Lane("test", torch.device("cpu"))

    def fail() -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        lane.start(fail).wait()
    with pytest.raises(ValueError, match="no such thing"):
        lane.start(lambda: None).wait()


def test_its_thread_ends_with_its_owner_and_drops_what_has_not_begun() -> None:
    lane, first, go = Lane("test-ends", torch.device("cpu")), threading.Event(), threading.Event()

    def hold() -> None:
        first.set()
        go.wait(10)

    under_way, waiting = lane.start(hold), lane.job(lambda: None)
    assert first.wait(10)
    go.set()
    assert under_way.wait()
    lane.close()
    lane.begin(waiting)
    del lane
    assert not any(thread.name == "test-ends" for thread in threading.enumerate())
