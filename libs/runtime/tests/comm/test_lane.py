"""Jobs on a lane: in order, with one failure for all, and none that is waited for in vain."""

import threading
from types import SimpleNamespace

import pytest
import torch

from distroml.runtime.comm.backends import port
from distroml.runtime.comm.lane import Job, Lane, LaneClosed
from distroml.runtime.elastic import PeerLost

CPU = torch.device("cpu")


def test_jobs_are_done_in_order_beside_the_caller_without_gradients() -> None:
    lane, done = Lane("test", CPU), []
    jobs = [
        lane.job(lambda n=n: done.append((n, threading.current_thread().name, torch.is_grad_enabled())))
        for n in range(5)
    ]
    for job in jobs:
        lane.begin(job)
    for job in reversed(jobs):
        job.wait()
    lane.close()
    assert done == [(n, "test", False) for n in range(5)]


def test_after_one_failure_all_others_fail_alike() -> None:
    lane = Lane("test", CPU)

    def fail() -> None:
        raise RuntimeError("[gloo/transport] Connection closed by peer")

    first, second = lane.job(fail), lane.job(lambda: None)
    lane.begin(first)
    lane.begin(second)
    for job in (first, second):
        with pytest.raises(PeerLost, match="Connection closed"):
            job.wait()
    lane.close()


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    lane = Lane("test", CPU)
    with pytest.raises(ZeroDivisionError):
        lane.do(lambda: print(1 / 0))
    lane.close()


def test_a_job_that_waits_though_connections_were_cut_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, never = Lane("test", CPU), threading.Event()
    monkeypatch.setattr(port, "_current", SimpleNamespace(backend=SimpleNamespace(in_vain=lambda: "they were cut")))
    with pytest.raises(PeerLost, match="they were cut"):
        lane.do(lambda: never.wait(60) and None)
    never.set()
    lane.close()


def test_what_comes_after_the_end_is_an_error() -> None:
    lane = Lane("test", CPU)
    lane.close()
    with pytest.raises(LaneClosed, match="make a new one"):
        lane.do(lambda: None)


def test_its_thread_ends_with_its_owner() -> None:
    lane = Lane("test-ends", CPU)
    lane.do(lambda: None)
    (thread,) = [one for one in threading.enumerate() if one.name == "test-ends"]
    del lane
    thread.join(10)
    assert not thread.is_alive()


def test_a_device_that_is_not_there_fails_jobs_and_keeps_nobody_waiting() -> None:
    lane, job = Lane("test", torch.device("cuda", 99)), Job(lambda: None, None)
    lane.begin(job)
    with pytest.raises((RuntimeError, AssertionError)):
        job.wait()
    lane.close()
