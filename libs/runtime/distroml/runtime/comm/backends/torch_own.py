"""Gloo and NCCL, as torch brings them."""

from __future__ import annotations

import torch.distributed as dist

from distroml.runtime.comm.backends.errors import BackEndUnavailable
from distroml.runtime.comm.backends.loops import settle
from distroml.runtime.comm.backends.port import Seat, SocketBackEnd


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


class Nccl(SocketBackEnd):
    """GPU memory over NVLink, InfiniBand or TCP; the default with GPUs."""

    name = torch_name = "nccl"

    def check(self, seat: Seat) -> None:
        """As in `BackEnd`."""
        if seat.device.type != "cuda":
            raise BackEndUnavailable(
                f"the back end nccl moves GPU memory only, and this process trains on {seat.device.type}; "
                "use gloo or mpi, or a machine with a GPU"
            )
        if not dist.is_nccl_available():
            raise BackEndUnavailable("this build of torch has no NCCL; install torch for CUDA, or use gloo or mpi")

    def sever(self) -> None:
        """As in `BackEnd`."""
        group = dist.group.WORLD
        if group is not None:
            group.abort()
        super().sever()
