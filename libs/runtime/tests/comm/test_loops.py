"""A thread that bears the name of Gloo's is waited for while it works, and only then."""

import hashlib
import threading
from collections.abc import Generator

import pytest

from distroml.runtime.comm.backends.loops import settle


@pytest.fixture
def busy() -> Generator[threading.Event]:
    """A thread under that name that computes until the event is set, and then sleeps."""
    idle, ended, ready = threading.Event(), threading.Event(), threading.Event()
    work = bytes(1 << 22)

    def run() -> None:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as name:
            name.write("pt_gloo_runloop")
        ready.set()
        while not idle.is_set():
            hashlib.sha256(work)  # without the interpreter's lock, as Gloo's threads compute
        ended.wait()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    yield idle
    idle.set()
    ended.set()
    thread.join()


def test_with_none_there_it_is_calm_at_once() -> None:
    assert settle()


def test_a_working_one_is_waited_for(busy: threading.Event) -> None:
    assert not settle(0.05)
    threading.Timer(0.1, busy.set).start()
    assert settle(20.0)
