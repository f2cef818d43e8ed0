"""Opens a world over MPI: the processes that mpirun started, and their sub-groups."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed has them, but does not export them

from distroml.runtime.comm.backends.errors import BackEndUnavailable
from distroml.runtime.comm.backends.mpi import library
from distroml.runtime.comm.backends.mpi.collectives import MpiGroup
from distroml.runtime.comm.backends.mpi.engine import Engine, Operation
from distroml.runtime.comm.backends.mpi.farewell import TAG
from distroml.runtime.comm.backends.mpi.kinds import Kinds
from distroml.runtime.comm.backends.mpi.posting import TORCH_NAME
from distroml.runtime.comm.backends.port import BackEnd, Seat

_ADDRESS_BYTES = 256
# Of tags below the one that farewells have.
_TAGS = TAG


class _Process:
    """What one process has of MPI, for all worlds that it opens one after the other."""

    def __init__(self, mpi: Any) -> None:
        self.mpi = mpi
        self.engine = Engine()
        self.kinds = Kinds(mpi)

    def communicator(self, ranks: Sequence[int], name: str, timeout: timedelta) -> Any:
        """A communicator of these ranks, each of which calls this.

        MPI makes it in one call that cannot be given up. So the ranks first meet by messages that can: a rank that
        does not come is an error at the deadline, and the call itself is short.
        """
        world, tag = self.mpi.COMM_WORLD, zlib.crc32(name.encode()) % _TAGS
        first, others = ranks[0], list(ranks[1:])
        here = world.rank
        token = bytearray(1)

        def message(kind: str, peer: int) -> Operation:
            start = world.Isend if kind == "to" else world.Irecv
            operation = Operation(
                what=f"opening group {name!r} of ranks {list(ranks)}, message {kind} rank {peer}",
                start=lambda: start((token, 1, self.mpi.BYTE), peer, tag),
                finish=lambda: None,
                result=[],
                timeout_s=timeout.total_seconds(),
                ranks=frozenset((peer,)),
            )
            self.engine.post(operation)
            return operation

        for kinds in (("from", "to"), ("to", "from")):
            peers = others if here == first else [first]
            for operation in [message(kinds[0 if here == first else 1], peer) for peer in peers]:
                self.engine.wait(operation)
        with self.engine.lock:
            return world.Create_group(world.Get_group().Incl(list(ranks)), tag)

    def address_of_first(self, address: str, timeout: timedelta) -> str:
        """What rank 0 calls `address`."""
        text = bytearray(address.encode().ljust(_ADDRESS_BYTES))
        operation = Operation(
            what="telling the store's address",
            start=lambda: self.mpi.COMM_WORLD.Ibcast((text, len(text), self.mpi.BYTE), root=0),
            finish=lambda: None,
            result=[],
            timeout_s=timeout.total_seconds(),
        )
        self.engine.post(operation)
        self.engine.wait(operation)
        return text.decode().strip()


_process: _Process | None = None


def _this_process() -> _Process:
    global _process
    if _process is None:
        _process = _Process(library.load())
        dist.Backend.register_backend(TORCH_NAME, _create, extended_api=True, devices=["cpu"])
    return _process


def _create(options: Any, _more: object) -> MpiGroup:
    """A group or sub-group, when torch asks for one."""
    process = _this_process()
    ranks = options.global_ranks_in_group or list(range(options.group_size))
    communicator = process.communicator(ranks, options.group_id, options.timeout)
    return MpiGroup(process.mpi, communicator, frozenset(ranks), process.engine, process.kinds, options.timeout)


class Mpi(BackEnd):
    """CPU memory over whatever Open MPI finds between the nodes: shared memory, TCP, InfiniBand.

    Ranks are the processes of one mpirun. When one is lost the world is over in all of them: see `Engine`.
    """

    name = "mpi"
    torch_name = TORCH_NAME
    reforms = False

    def check(self, seat: Seat) -> None:
        """As in `BackEnd`."""
        if seat.device.type != "cpu":
            raise BackEndUnavailable(
                f"the back end mpi moves CPU memory only, and this process trains on {seat.device.type}; use nccl, or "
                "device='cpu'"
            )
        world = library.load().COMM_WORLD
        if (world.size, world.rank) != (seat.world_size, seat.rank):
            raise BackEndUnavailable(
                f"MPI says that this is rank {world.rank} of {world.size}, and the environment rank {seat.rank} of "
                f"{seat.world_size}: start the job with `--backend mpi`, or all ranks by one mpirun (`mpirun -n "
                f"{seat.world_size} python script.py`), without RANK and WORLD_SIZE of another launcher"
            )

    def open(self, seat: Seat, store: Store | None, timeout: timedelta) -> None:
        """As in `BackEnd`."""
        process = _this_process()
        dist.init_process_group(
            self.torch_name,
            store=store or _store(process, seat, timeout),
            rank=seat.rank,
            world_size=seat.world_size,
            timeout=timeout,
        )
        dist.barrier()

    def sever(self) -> None:
        """As in `BackEnd`. The other ranks are ended by mpirun, as soon as this process ends."""
        _this_process().engine.break_("this rank left the world after a failure")


def _store(process: _Process, seat: Seat, timeout: timedelta) -> Store:
    """A store at rank 0, for what in torch needs one: mpirun brings none."""
    own: TCPStore | None = None
    address = ""
    if seat.rank == 0:
        one_node = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(seat.world_size)
        host = "127.0.0.1" if one_node else socket.gethostname()
        own = TCPStore(host, 0, None, is_master=True, timeout=timeout, wait_for_workers=False)
        address = f"{host}:{own.port}"
    host, _, port = process.address_of_first(address, timeout).rpartition(":")
    return own or TCPStore(host, int(port), None, is_master=False, timeout=timeout)
