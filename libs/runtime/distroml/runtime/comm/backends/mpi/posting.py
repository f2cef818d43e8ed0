"""A group over MPI as torch knows it, and how an operation of the engine becomes the work that torch waits for.

Pinned to torch 2.15: `Backend` is subclassed by the names that its C++ side looks up, which are not public
(libs/runtime/tests/comm calls each of them through `torch.distributed`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Backend, Work  # the base that torch offers to back ends, not exported

from distroml.runtime.comm.backends.mpi.engine import Engine, Operation
from distroml.runtime.comm.backends.mpi.kinds import Kinds
from distroml.runtime.comm.backends.mpi.memory import Tensors
from distroml.runtime.comm.backends.mpi.work import MpiWork

TORCH_NAME = "mpi4py"


class Posting(Backend):
    """One communicator, and operations on it."""

    def __init__(
        self, mpi: Any, communicator: Any, ranks: frozenset[int], engine: Engine, kinds: Kinds, timeout: timedelta
    ) -> None:
        super().__init__(communicator.rank, communicator.size)
        self._mpi = mpi
        self._comm = communicator
        self._ranks = ranks
        self._engine = engine
        self._kinds = kinds
        self._timeout = timeout

    # ---- what it is

    def getBackendName(self) -> str:
        """As torch knows it."""
        return TORCH_NAME

    @property
    def options(self) -> Backend.Options:
        """Name and time limit."""
        return Backend.Options(TORCH_NAME, timeout=self._timeout)

    def set_timeout(self, timeout: timedelta) -> None:
        """How long operations from now on may take."""
        self._timeout = timeout

    def shutdown(self) -> None:
        """Let the communicator go; with operations under way it stays."""
        self._engine.release(self._comm)

    def abort(self) -> None:
        """Break the world: everything that waits in it fails."""
        self._engine.break_("the group was aborted")

    # ---- operations

    def _post(
        self,
        what: str,
        start: Callable[[], Any],
        finish: Callable[[], None],
        result: Tensors,
        opts: Any,
        keep: tuple[torch.Tensor, ...] = (),
    ) -> Operation:
        """Start an operation; `keep` is memory that nothing else here holds while it runs."""
        asked: timedelta | None = getattr(opts, "timeout", None)
        limit = asked if asked is not None and asked > timedelta(0) else self._timeout

        def put() -> None:
            with torch.no_grad():
                finish()
            del kept[:]

        kept = list(keep)
        operation = Operation(
            what=f"{what} over {self._comm.size} ranks",
            start=start,
            finish=put,
            result=result,
            timeout_s=limit.total_seconds(),
            ranks=self._ranks,
        )
        self._engine.post(operation)
        return operation

    def _all(self, operations: list[Operation], result: Tensors) -> Work:
        return MpiWork(self._engine, operations, result)
