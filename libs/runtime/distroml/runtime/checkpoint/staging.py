"""Copies of this rank's part of the state, in CPU buffers that are made once and used for every save."""

from __future__ import annotations

import io

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from distroml.runtime.checkpoint.agreement import Agreed
from distroml.runtime.checkpoint.planner import PlainSavePlanner, State


class StagedPlanner(PlainSavePlanner):
    """A save planner whose data is what the state held at `stage`; the state may change afterwards.

    Memory: one copy of what this rank writes, bounded because the copy of the next save goes into the same buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[MetadataIndex, torch.Tensor] = {}
        self._values: dict[str, bytes] = {}
        self._copied: torch.cuda.Event | None = None

    def stage(self, state: State | Agreed, rank: int, world_size: int) -> SavePlan:
        """Plan this rank's part and copy it; blocks for the copy (of GPU tensors: only for its launch)."""
        if isinstance(state, Agreed):
            plan = self.plan_agreed(state)
        else:
            self.set_up_planner(state)
            plan = self.plan_alone(rank, world_size)
        self._values = {}
        buffers: dict[MetadataIndex, torch.Tensor] = {}
        on_gpu = False
        for item in plan.items:
            data = super().resolve_data(item)
            if isinstance(data, io.BytesIO):
                self._values[item.index.fqn] = data.getvalue()
                continue
            # Copies from a GPU run in its stream before the kernels of the next step: the CPU need not wait here.
            buffer = self._buffer(item.index, data)
            buffer.copy_(data, non_blocking=data.is_cuda)
            on_gpu = on_gpu or data.is_cuda
            buffers[item.index] = buffer
        self._buffers = buffers
        self.leaves = {}
        self._copied = None
        if on_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return plan

    def _buffer(self, index: MetadataIndex, data: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(index)
        if buffer is None or buffer.shape != data.shape or buffer.dtype != data.dtype:
            buffer = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
        return buffer

    def finish_copy(self) -> None:
        """Wait until the copies from GPUs are complete; called on the saver's thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The staged copy."""
        value = self._values.get(write_item.index.fqn)
        return self._buffers[write_item.index] if value is None else io.BytesIO(value)
