"""What torch waits for: operations of the engine, as one `Work`.

Pinned to torch 2.15: `Work` is subclassed by the names that torch's C++ side looks up, which are not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Work  # the base that torch offers to back ends, not exported
from torch.futures import Future

from distroml.runtime.comm.backends.mpi.engine import Engine, Operation


class MpiWork(Work):
    """Operations that torch waits for as one."""

    def __init__(self, engine: Engine, operations: Sequence[Operation], result: list[torch.Tensor]) -> None:
        super().__init__()
        self._engine = engine
        self._operations = operations
        self._result = result

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Poll until all are done; raises `CommunicationFailed` at a failure, or a deadline."""
        limit_s = timeout.total_seconds() if timeout.total_seconds() > 0 else None
        for operation in self._operations:
            self._engine.wait(operation, limit_s)
        return True

    def is_completed(self) -> bool:
        """Whether all are done, well or not."""
        return all(operation.done for operation in self._operations)

    def result(self) -> list[torch.Tensor]:
        """The tensors that hold the result."""
        return self._result

    def get_future(self) -> Future[Any]:
        """Completes with the tensors that hold the result."""
        if len(self._operations) == 1:
            return self._engine.future(self._operations[0])
        futures: Any = torch.futures  # its functions are only partly typed
        all_ = futures.collect_all([self._engine.future(operation) for operation in self._operations])

        def result(_ended: Any) -> list[torch.Tensor]:
            for operation in self._operations:
                self._engine.wait(operation)
            return self._result

        return all_.then(result)
