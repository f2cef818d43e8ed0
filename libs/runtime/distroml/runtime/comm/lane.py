"""One thread that talks to other ranks beside the training thread, one job after the other."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable

import torch

from distroml.runtime.comm.backends import LOOK_S, in_vain
from distroml.runtime.elastic import PeerLost, communication

# A thread that waits for a peer is freed by the end of its connections, which others see to.
_END_S = 1.0
_CLOSED = "this exchange between ranks was closed; make a new one"


class LaneClosed(RuntimeError):
    """The job was never done: its lane was closed before."""


class Job:
    """One piece of work on a lane; `wait()` is called once, by one thread."""

    def __init__(self, action: Callable[[], None], ready: torch.cuda.Event | None) -> None:
        self._action: Callable[[], None] | None = action
        self._ready = ready
        self._done: torch.cuda.Event | None = None
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self.waited_s = 0.0

    def do(self, stream: torch.cuda.Stream | None) -> BaseException | None:
        """Do it on the lane's thread; returns why it failed."""
        action, self._action = self._action, None
        assert action is not None
        try:
            with communication(), torch.no_grad(), torch.cuda.stream(stream):
                if stream is not None and self._ready is not None:
                    stream.wait_event(self._ready)
                action()
                if stream is not None:
                    self._done = torch.cuda.Event()
                    self._done.record(stream)
        except PeerLost as failure:
            # One without a trace: that would keep the process group alive, whose end is what frees the peers.
            self.fail(PeerLost(str(failure)))
        except BaseException as failure:
            self.fail(failure)
        else:
            self._ended.set()
        return self._failure

    def fail(self, failure: BaseException) -> None:
        """It will not be done."""
        self._action = None
        self._failure = failure
        self._ended.set()

    def wait(self) -> bool:
        """Return when it is done (on CUDA: when the current stream will see it); `waited_s` says how long that took.

        Raises:
            PeerLost: another rank was gone, for this job or one before it; or the connections were, and the lane waits.
            Exception: whatever else went wrong on the lane.
        """
        started = time.perf_counter()
        while not self._ended.wait(LOOK_S):
            if why := in_vain():
                raise PeerLost(why)
        self.waited_s = time.perf_counter() - started
        if isinstance(self._failure, PeerLost):
            # One object would gather the traces of all who wait.
            raise PeerLost(str(self._failure))
        if self._failure is not None:
            raise self._failure
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)
        return True


class _Broken:
    """Why no further job is done."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None


class Lane:
    """Does jobs in the order they are handed in; after one failed, all others fail alike. Ends with its owner.

    Collectives that are only ever made on one lane come in one order, whatever the training thread does meanwhile.

    Args:
        name: of the thread.
        device: whose work the jobs do; on CUDA they have a stream of their own, which waits for the submitter's.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._device = device
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._broken = _Broken()
        self._closed = False
        # A daemon: a process that ends must not wait for a peer that is gone.
        self._thread = threading.Thread(
            target=_serve, args=(self._jobs, self._broken, device, torch.get_num_threads()), name=name, daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def job(self, action: Callable[[], None]) -> Job:
        """Make a job of `action`, which runs without gradients, on what the device holds once it has come here."""
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._device))
        return Job(action, ready)

    def begin(self, job: Job) -> None:
        """Have a job done after all that were begun before it; once the lane is closed, it fails."""
        if self._closed:
            job.fail(LaneClosed(_CLOSED))
        else:
            self._jobs.put(job)

    def start(self, action: Callable[[], None]) -> Job:
        """Have `action` done after all that was begun before it."""
        job = self.job(action)
        self.begin(job)
        return job

    def do(self, action: Callable[[], None]) -> None:
        """Have `action` done, and wait for it. Raises what `Job.wait` does."""
        self.start(action).wait()

    def close(self) -> None:
        """Drop what has not begun, and end the thread; waits for it only a moment. Repeatable."""
        self._closed = True
        self._broken.failure = self._broken.failure or LaneClosed(_CLOSED)
        self._jobs.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(_END_S)


def _serve(jobs: queue.SimpleQueue[Job | None], broken: _Broken, device: torch.device, threads: int) -> None:
    # Torch counts threads by the thread that asks: one of two ranks on a machine may not take all of it here.
    torch.set_num_threads(threads)
    stream = None
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            stream = torch.cuda.Stream(device)
    except Exception as failure:
        # Without this thread nobody would ever tell those who wait.
        broken.failure = failure
    while (job := jobs.get()) is not None:
        if broken.failure is not None:
            job.fail(broken.failure)
        else:
            failure = job.do(stream)
            broken.failure = broken.failure or failure
        # Until the next job comes, nothing of this one must stay.
        del job
