"""One thread that does communication, in the order in which it was asked to."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import torch

from distroml.runtime.elastic import PeerLost, communication

_Task = tuple["Future[None]", Callable[[], None]]


class _Work:
    """What torch's works are to `Pending`."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self) -> bool:
        self._future.result()
        return True


class Lane:
    """Runs what it is given on a thread of its own, one after the other; ends with its owner.

    Ranks that ask in the same order communicate in the same order. After the first failure nothing is tried any more
    and all that was asked is `PeerLost`: the group is broken, and whoever waits must not wait for its time-out.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        # A daemon: a process that ends must not wait for a peer that is gone.
        arguments = (self._tasks, torch.get_num_threads())
        threading.Thread(target=_serve, args=arguments, name=name, daemon=True).start()
        weakref.finalize(self, self._tasks.put, None)

    def start(self, task: Callable[[], None]) -> _Work:
        """Do `task` after all that was asked before; `wait()` of what is returned raises what it raised."""
        future: Future[None] = Future()
        self._tasks.put((future, task))
        return _Work(future)


def _serve(tasks: SimpleQueue[_Task | None], threads: int) -> None:
    # Torch counts threads by the thread that asks: ranks that share processors may not take all of them here.
    torch.set_num_threads(threads)
    failure = ""
    while (asked := tasks.get()) is not None:
        future, task = asked
        try:
            if failure:
                raise PeerLost(failure)
            with communication():
                task()
        except PeerLost as error:
            failure = str(error)
            # One without a trace: that would keep the group alive, whose end is what frees the peers.
            future.set_exception(PeerLost(failure))
        except BaseException as error:
            failure = f"an earlier exchange failed: {error}"
            future.set_exception(error)
        else:
            future.set_result(None)
        # Until the next task comes, none of this one's tensors must stay.
        del asked, future, task
