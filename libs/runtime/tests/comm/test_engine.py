"""What waits in MPI when the world breaks hears of it, however that comes to be known."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from distroml.runtime.comm.backends.errors import CommunicationFailed
from distroml.runtime.comm.backends.mpi import library
from distroml.runtime.comm.backends.mpi.engine import Engine, Operation


class Refused(Exception):
    """As MPI's own errors, by where it is from."""


Refused.__module__ = "mpi4py.MPI"


class Never:
    def Test(self) -> bool:
        return False


def operation(start: Any) -> Operation:
    return Operation(what="a sum", start=start, finish=lambda: None, result=[], timeout_s=3600.0)


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
