"""What waits in MPI when the world breaks hears of it, however that comes to be known."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distroml.runtime.comm.backends.errors import CommunicationFailed
from distroml.runtime.comm.backends.mpi import library
from distroml.runtime.comm.backends.mpi.collectives import MpiGroup
from distroml.runtime.comm.backends.mpi.engine import Engine, Operation


class Refused(Exception):
    """As MPI's own errors, by where it is from."""


Refused.__module__ = "mpi4py.MPI"


class Never:
    def Test(self) -> bool:
        return False


class Once:
    """Ends once it was let go."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def Test(self) -> bool:
        return self.free.is_set()


def operation(start: Any, finish: Any = lambda: None) -> Operation:
    return Operation(what="a sum", start=start, finish=finish, result=[], timeout_s=3600.0)


def test_a_call_that_mpi_refuses_ends_the_futures_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "give_up", lambda: None)
    engine, heard = Engine(), threading.Event()

    def refuse() -> None:
        raise Refused("no such communicator")

    waiting = operation(Never)
    engine.post(waiting)
    future = engine.future(waiting)
    future.add_done_callback(lambda _: heard.set())
    with pytest.raises(CommunicationFailed, match="a sum failed: no such communicator"):
        engine.post(operation(refuse))
    assert heard.wait(20)
    with pytest.raises(CommunicationFailed, match="no such communicator"):
        engine.wait(waiting)
    with pytest.raises(CommunicationFailed, match="was not begun: a sum failed"):
        engine.post(operation(Never))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.timeout(60)
def test_a_result_that_cannot_be_put_in_place_ends_all_waiting(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """Whoever tests it: one who waits, or the thread behind, which then goes on for all later operations."""
    monkeypatch.setattr(library, "give_up", lambda: None)
    engine, heard, once = Engine(), threading.Event(), Once()

    def lost() -> None:
        raise RuntimeError("the result is of another shape")

    behind, ending = operation(Never), operation(lambda: once, lost)
    for one in (behind, ending):
        engine.post(one)
    engine.future(ending).add_done_callback(lambda _: heard.set())
    if waits:
        with engine.lock:
            # The thread behind cannot come between.
            once.free.set()
            with pytest.raises(CommunicationFailed, match="a sum failed at its end: the result is of another shape"):
                engine.wait(ending)
    else:
        once.free.set()
    assert heard.wait(20)
    for one in (ending, behind):
        with pytest.raises(CommunicationFailed, match="at its end"):
            engine.wait(one)
    assert engine._thread is not None
    assert engine._thread.is_alive()
    with pytest.raises(CommunicationFailed, match="was not begun"):
        engine.post(operation(Never))


def test_torch_breaks_the_world_where_it_aborts_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "give_up", lambda: None)
    engine = Engine()
    alone: Any = SimpleNamespace(rank=0, size=1)
    group = MpiGroup(None, alone, frozenset({0}), engine, None, timedelta(seconds=5))
    known = dist.ProcessGroup(0, 1)
    known._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.CUSTOM, group)
    known.abort()
    with pytest.raises(CommunicationFailed, match="the group was aborted"):
        engine.post(operation(Never))
