"""NCCL, Gloo and MPI behind one interface."""

from distroml.runtime.comm.backends.choice import NAMES, choose_backend, make_backend, with_mpirun
from distroml.runtime.comm.backends.errors import BackEndError, BackEndUnavailable, CommunicationFailed
from distroml.runtime.comm.backends.port import BackEnd, Seat, lost, now_in

__all__ = [
    "NAMES",
    "BackEnd",
    "BackEndError",
    "BackEndUnavailable",
    "CommunicationFailed",
    "Seat",
    "choose_backend",
    "lost",
    "make_backend",
    "now_in",
    "with_mpirun",
]
