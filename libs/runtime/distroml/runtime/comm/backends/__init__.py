"""NCCL, Gloo and MPI behind one interface."""

from distroml.runtime.comm.backends.choice import NAMES, choose_backend, make_backend, with_mpirun
from distroml.runtime.comm.backends.errors import BackEndError, BackEndUnavailable, CommunicationFailed
from distroml.runtime.comm.backends.port import BackEnd, Seat, in_vain, lost, now_in
from distroml.runtime.comm.backends.waits import LOOK_S, Work, watched

__all__ = [
    "LOOK_S",
    "NAMES",
    "BackEnd",
    "BackEndError",
    "BackEndUnavailable",
    "CommunicationFailed",
    "Seat",
    "Work",
    "choose_backend",
    "in_vain",
    "lost",
    "make_backend",
    "now_in",
    "watched",
    "with_mpirun",
]
