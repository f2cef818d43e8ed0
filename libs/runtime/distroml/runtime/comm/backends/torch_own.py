"""Gloo and NCCL, as torch brings them."""

from __future__ import annotations

import logging
import os
import threading
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType, Store  # torch.distributed has them, but does not export them

from distroml.runtime.comm.backends.errors import BackEndUnavailable
from distroml.runtime.comm.backends.loops import settle
from distroml.runtime.comm.backends.outliving import outlive
from distroml.runtime.comm.backends.port import Seat, SocketBackEnd

log = logging.getLogger("distroml.runtime.comm")

# What torch does about a peer that is gone: not end this process (its default), but free whoever waits in a kernel.
_HANDLING, _CLEAN_UP_ONLY = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "2"


class Gloo(SocketBackEnd):
    """CPU memory over TCP. Everywhere; the default without GPUs."""

    name = torch_name = "gloo"

    def check(self, seat: Seat) -> None:
        """As in `BackEnd`."""
        if seat.device.type == "cuda":
            raise BackEndUnavailable(
                "the back end gloo was asked for with device='cuda': its collectives would go through the CPU's "
                "memory; leave `backend` out to use nccl, or train with device='cpu'"
            )

    def settle(self) -> None:
        """As in `BackEnd`."""
        settle()

    def outlive(self) -> None:
        """As in `BackEnd`."""
        outlive()


class Nccl(SocketBackEnd):
    """GPU memory over NVLink, InfiniBand or TCP; the default with GPUs."""

    name = torch_name = "nccl"

    def __init__(self) -> None:
        super().__init__()
        self._severed = False
        self._aborting = threading.Lock()
        # By name: what torch hands out for a group need not be the same object each time.
        self._aborted: set[str] = set()

    def check(self, seat: Seat) -> None:
        """As in `BackEnd`."""
        if seat.device.type != "cuda":
            raise BackEndUnavailable(
                f"the back end nccl moves GPU memory only, and this process trains on {seat.device.type}; "
                "use gloo or mpi, or a machine with a GPU"
            )
        if not dist.is_nccl_available():
            raise BackEndUnavailable("this build of torch has no NCCL; install torch for CUDA, or use gloo or mpi")

    def open(self, seat: Seat, store: Store | None, timeout: timedelta) -> None:
        """As in `BackEnd`."""
        os.environ.setdefault(_HANDLING, _CLEAN_UP_ONLY)
        super().open(seat, store, timeout)

    def sever(self) -> None:
        """As in `BackEnd`."""
        self._severed = True
        super().sever()
        with self._aborting:
            waiting = {name: group for name, group in _groups().items() if name not in self._aborted}
            if not waiting:
                return
            self._aborted |= waiting.keys()
            _abort(list(waiting.values()))

    def failure(self) -> str:
        """As in `BackEnd`. An aborted kernel ends like any other, and leaves what it had so far."""
        if self._severed:
            return "the connections of this generation were cut"
        for group in _groups().values():
            if (kind := group.get_error()) != ErrorType.SUCCESS:
                return f"NCCL lost another rank ({kind.name})"
        return ""


def _groups() -> dict[str, Any]:
    """NCCL's part of every group of this process, by the group's name, which no other of its world has."""
    if not dist.is_initialized():
        return {}
    own = cast("Any", dist.distributed_c10d)._world
    found: dict[str, Any] = {}
    for group, name in list(own.pg_names.items()):
        try:
            part = group._get_backend(torch.device("cuda"))
        except RuntimeError:
            continue  # destroyed meanwhile, or a group that moves no GPU memory
        # With TORCH_DISTRIBUTED_DEBUG=DETAIL there is something around it.
        part = getattr(part, "wrapped_pg", part)
        if hasattr(part, "_group_start"):
            found[name] = part
    return found


def _abort(groups: list[Any]) -> None:
    """All of them as one: aborts one after the other may wait for one another's kernels (pytorch#119797)."""
    for step in (groups[0]._group_start, *(group.abort for group in groups), groups[0]._group_end):
        try:
            step()
        except RuntimeError as error:
            # One that is not aborted must not keep the others waiting.
            log.info("not every group was aborted: %s", error)
