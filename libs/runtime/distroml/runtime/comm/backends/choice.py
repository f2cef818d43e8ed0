"""Which back end a process uses: what was asked for, or what its launcher and its device suggest."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch

from distroml.runtime.comm.backends.port import BackEnd
from distroml.workerlink import environment

# Imported on use: mpi needs mpi4py.
_CLASSES = {
    "gloo": "distroml.runtime.comm.backends.torch_own:Gloo",
    "nccl": "distroml.runtime.comm.backends.torch_own:Nccl",
    "mpi": "distroml.runtime.comm.backends.mpi.backend:Mpi",
}

NAMES = tuple(_CLASSES)
"""What `backend` may be."""

# Open MPI's mpirun says with these to each process who it is.
_MPIRUN = {
    environment.RANK: "OMPI_COMM_WORLD_RANK",
    environment.LOCAL_RANK: "OMPI_COMM_WORLD_LOCAL_RANK",
    environment.WORLD_SIZE: "OMPI_COMM_WORLD_SIZE",
    environment.LOCAL_WORLD_SIZE: "OMPI_COMM_WORLD_LOCAL_SIZE",
}


def with_mpirun(environ: Mapping[str, str]) -> Mapping[str, str]:
    """`environ` with torchrun's variables, where mpirun alone started this process."""
    if environment.RANK in environ or not started_by_mpirun(environ):
        return environ
    return {**environ, **{ours: environ[theirs] for ours, theirs in _MPIRUN.items() if theirs in environ}}


def started_by_mpirun(environ: Mapping[str, str]) -> bool:
    """Whether Open MPI's mpirun started this process."""
    return all(theirs in environ for theirs in _MPIRUN.values())


def choose_backend(wanted: str | None, environ: Mapping[str, str], device: torch.device) -> str:
    """The name of the back end: `wanted`, or the job's, or mpi under a bare mpirun, or what suits the device.

    Raises:
        ValueError: there is no such back end, or script and job ask for different ones.
    """
    asked = environ.get(environment.BACKEND) or None
    if wanted and asked and wanted != asked:
        raise ValueError(
            f"the script asks for the back end {wanted} and its job for {asked}, which decides how ranks are started; "
            f"leave `backend` out of the script, or set {environment.BACKEND}={wanted}"
        )
    chosen = wanted or asked
    if chosen is not None:
        if chosen not in _CLASSES:
            raise ValueError(f"there is no back end {chosen!r}; choose one of {', '.join(NAMES)}")
        return chosen
    if device.type == "cuda":
        return "nccl"
    alone = environment.MASTER_ADDR not in environ and started_by_mpirun(environ)
    return "mpi" if alone else "gloo"


def make_backend(name: str) -> BackEnd:
    """A back end for one world; raises `BackEndUnavailable` where its parts are not installed."""
    module, _, class_ = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), class_)()
