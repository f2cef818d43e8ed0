"""MPI in this process: loaded once, and ended in a way that cannot hang on a rank that failed."""

from __future__ import annotations

import atexit
import importlib
import sys
import threading
import time
from typing import Any

from distroml.runtime.comm.backends.errors import BackEndUnavailable
from distroml.runtime.comm.backends.mpi.farewell import Farewell

_END_S = 1800.0
_PAUSE_S = 0.005

lock = threading.RLock()
"""Held around every call of MPI: it is asked for THREAD_SERIALIZED only."""

_loaded: Any = None
_farewell: Farewell | None = None
_broken = False


def load() -> Any:
    """The module `mpi4py.MPI`, with MPI running.

    Raises:
        BackEndUnavailable: mpi4py or an MPI library is missing, or MPI does not start; says what to install.
    """
    global _loaded, _farewell
    if _loaded is not None:
        return _loaded
    try:
        settings = importlib.import_module("mpi4py").rc
    except ImportError as error:
        raise BackEndUnavailable(
            f"the back end mpi needs mpi4py, which {sys.executable} does not have ({error}); install it with "
            "`pip install 'distroml[mpi]'`, or choose the back end gloo"
        ) from None
    if "mpi4py.MPI" not in sys.modules:
        # All calls are made under one lock, and the end of MPI is ours.
        settings.thread_level = "serialized"
        settings.finalize = False
    try:
        mpi = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise BackEndUnavailable(
            f"the back end mpi found mpi4py, but no MPI library that it can load ({_first_line(error)}); install Open "
            "MPI (Debian: apt-get install openmpi-bin libopenmpi-dev), or choose the back end gloo"
        ) from None
    if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
        raise BackEndUnavailable(
            "this process started MPI without support for threads before DistroML did; import mpi4py.MPI with "
            "mpi4py.rc.thread_level at its default, or let DistroML start MPI"
        )
    _loaded, _farewell = mpi, Farewell(mpi)
    atexit.register(_end, mpi)
    return mpi


def gone() -> frozenset[int]:
    """Ranks whose programs have ended: they come to no collective any more."""
    with lock:
        return _farewell.gone() if _farewell is not None else frozenset()


def give_up() -> None:
    """MPI is not to be ended in good order in this process: ranks that still wait must not be waited for."""
    global _broken
    _broken = True


def ended() -> bool:
    """Whether MPI is over in this process."""
    return _loaded is None or bool(_loaded.Is_finalized())


def _end(mpi: Any) -> None:
    """End MPI where all ranks come to it; else leave without, which makes mpirun end the others.

    MPI_Finalize waits for every rank, for ever: a script that failed on one would never end. mpirun takes a process
    that ends without it for a failure, ends all others and says which it was. Those that wait for this rank meanwhile
    hear that its program ended, and fail.
    """
    until = time.monotonic() + _END_S
    while not (_broken or mpi.Is_finalized() or getattr(sys, "last_type", None) is not None):
        with lock:
            assert _farewell is not None
            _farewell.say()
            if _farewell.all_said():
                mpi.Finalize()
                return
        if time.monotonic() > until:
            return
        time.sleep(_PAUSE_S)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
