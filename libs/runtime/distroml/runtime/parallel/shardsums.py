"""Gradients summed along dp_shard as block codes instead of float32: FSDP2's reduce-scatter, replaced.

Each rank sends every other one the code of its part, and adds up what it gets in float32. Rounding is unbiased, so that
nothing has to be fed back: a residual would be as large as the whole model's gradients on every rank, which sharding is
there to avoid. Schemes that need one (Top-K, sign, low rank) are therefore none for this axis.

What torch promises and what is relied upon: `set_custom_reduce_scatter` hands in one flat buffer of equal parts by
rank, zero where parameters are padded, and wants this rank's sum. All scaling is the caller's (`sharding`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from distroml.runtime.comm import WireCount
from distroml.runtime.comm.algorithms import Arrangement
from distroml.runtime.comm.rounds import Peers
from distroml.runtime.compress import Round, Turn
from distroml.runtime.compress.codecs import INT4, INT8, BlockCodec, NonFinite, add_all
from distroml.runtime.compress.schemes.seeds import seed_of

SHARD_CODECS = {"int8": INT8, "int4": INT4}
_AXIS = "dp_shard"
# Before each code: one byte that says that there is none, since the gradient is no finite number.
_HEAD_BYTES = 8
_ALIGN_BYTES = 8


class ShardSums:
    """The coded sums of all FSDP units of one rank; `open()` before each step.

    Args:
        codec: unbiased, by blocks.
        seed: of the job.
        arrangement: of the ranks along dp_shard on nodes, by which bytes are counted; None: they share one.
    """

    def __init__(self, codec: BlockCodec, seed: int, arrangement: Arrangement | None = None) -> None:
        self._codec = codec
        self._seed = seed
        self._arrangement = arrangement
        self._step = 0
        self._passes: Counter[int] = Counter()
        self.wire = WireCount()

    def open(self, step: int) -> None:
        """A new step, whose random numbers depend on its number."""
        self._step = step
        self._passes.clear()

    def take_over(self, stages: Sequence[nn.Module]) -> None:
        """Sum the gradients of every FSDP unit within these modules."""
        units = [module for stage in stages for module in stage.modules() if isinstance(module, FSDPModule)]
        for number, unit in enumerate(units):
            cast("Any", unit).set_custom_reduce_scatter(_Unit(self, number))

    def sum(self, unit: int, given: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """This rank's part of the sum of `given` over `group`, float32; NaN where any rank's part is no finite number.

        Raises:
            PeerLost: another rank is gone.
        """
        ranks, rank = group.size(), group.rank()
        self._passes[unit] += 1
        parts = given.float().view(ranks, -1)
        size = self._codec.size(parts.shape[1])
        slot = -(-(_HEAD_BYTES + size) // _ALIGN_BYTES) * _ALIGN_BYTES
        codes = torch.zeros(ranks, slot, dtype=torch.uint8, device=given.device)
        turn = Turn(rank, ranks, self._step, unit, self._seed, 1.0)
        for owner in range(ranks):
            code = codes[owner, _HEAD_BYTES : _HEAD_BYTES + size]
            try:
                self._codec.encode(parts[owner], None, 1.0, seed_of(turn, self._passes[unit], rank, owner), code)
            except NonFinite:
                # Told instead of raised: the others wait for this rank.
                codes[:, 0] = 1
        peers = Peers(group, None, self._arrangement)
        got = peers.make(Round("scatter", codes.view(-1)))
        for level, sent in peers.take().items():
            self.wire.add(_AXIS, level, self._codec.name, sent)
        if bool(got[:, 0].any()):
            return torch.full_like(parts[0], math.nan)
        total = torch.zeros_like(parts[0])
        add_all(self._codec, got[:, _HEAD_BYTES : _HEAD_BYTES + size].contiguous(), total)
        return total


class _Unit:
    """One FSDP unit's reduce-scatter, as torch calls it once for each backward pass."""

    def __init__(self, sums: ShardSums, number: int) -> None:
        self._sums = sums
        self._number = number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A buffer for torch to fill."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Put this rank's part of the sum into `output_tensor`."""
        if op != dist.ReduceOp.SUM or async_op:
            raise RuntimeError(
                f"torch asks for {op} along dp_shard where a plain sum was set up; leave out compress_shard"
            )
        output_tensor.copy_(self._sums.sum(self._number, input_tensor, group))
