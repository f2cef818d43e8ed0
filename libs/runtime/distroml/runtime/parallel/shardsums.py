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
from itertools import accumulate
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from distroml.runtime.comm import WireCount
from distroml.runtime.comm.algorithms import Arrangement
from distroml.runtime.comm.rounds import Peers
from distroml.runtime.compress import Round, Turn
from distroml.runtime.compress.codecs import INT4, INT8, BlockCodec, sum_all
from distroml.runtime.compress.codecs import NonFinite as Broken
from distroml.runtime.compress.schemes.seeds import seed_of
from distroml.runtime.elastic import hearing
from distroml.runtime.parallel.culprits import NonFinite
from distroml.runtime.parallel.units import own_parameters, shard_numel, units_of
from distroml.runtime.typed import integers

SHARD_CODECS = {"int8": INT8, "int4": INT4}
_AXIS = "dp_shard"
# Before each code, an integer: 0, or where in its unit the sender's first parameter is whose gradient is no finite
# number, counted from 1; there is no code then.
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
        self.non_finite: tuple[NonFinite, ...] = ()

    def open(self, step: int) -> None:
        """A new step, whose random numbers depend on its number."""
        self._step = step
        self._passes.clear()
        self.non_finite = ()

    def take_over(self, stages: Sequence[nn.Module], held: Sequence[tuple[str, nn.Parameter]], ranks: int) -> None:
        """Sum the gradients of every FSDP unit within these modules over `ranks`; `held` names their parameters."""
        names = {id(parameter): name for stage in stages for name, parameter in stage.named_parameters()}
        names |= {id(parameter): name for name, parameter in held}
        for number, unit in enumerate(units_of(stages)):
            own = [one for one in own_parameters(unit) if one.requires_grad]
            lies = [(names[id(one)], shard_numel(one, ranks)) for one in own]
            cast("Any", unit).set_custom_reduce_scatter(_Unit(self, number, lies))

    def sum(
        self, unit: int, given: torch.Tensor, group: dist.ProcessGroup, lies: Sequence[tuple[str, int]]
    ) -> torch.Tensor:
        """This rank's part of the sum of `given` over `group`, float32; NaN where any rank's part is no finite number.

        Whose that is, and of which parameter, `non_finite` then has on every rank of the group.

        Args:
            unit: number of the FSDP unit.
            given: all ranks' parts, one after the other.
            group: of the ranks.
            lies: names of the parameters in a part, in order, and how many elements each has.

        Raises:
            PeerLost: another rank is gone.
        """
        ranks, rank = group.size(), group.rank()
        self._passes[unit] += 1
        parts = given.float().view(ranks, -1)
        numel = parts.shape[1]
        size = self._codec.size(numel)
        slot = -(-(_HEAD_BYTES + size) // _ALIGN_BYTES) * _ALIGN_BYTES
        codes = torch.zeros(ranks, slot, dtype=torch.uint8, device=given.device)
        turn = Turn(rank, ranks, self._step, unit, self._seed, 1.0)
        for owner in range(ranks):
            seed = seed_of(turn, self._passes[unit], rank, owner)
            try:
                self._codec.encode(parts[owner], None, 1.0, seed, codes[owner, _HEAD_BYTES : _HEAD_BYTES + size])
            except Broken as broken:
                # Told instead of raised: the others wait for this rank.
                _heads(codes)[:] = 1 + _place(lies, broken.index)
        # A unit's gradients are the largest there is: what is not wanted any more goes before more comes up.
        del parts
        peers = Peers(group, None, self._arrangement)
        got = peers.make(Round("scatter", codes.view(-1)))
        del codes
        for level, sent in peers.take().items():
            self.wire.add(_AXIS, level, self._codec.name, sent)
        with hearing():
            heads = integers(_heads(got).flatten())
        if any(heads):
            self.non_finite += tuple(
                NonFinite(dist.get_global_rank(group, sender), lies[head - 1][0], self._step)
                for sender, head in enumerate(heads)
                if head
            )
            return given.new_full((numel,), math.nan, dtype=torch.float32)
        total = given.new_empty(numel, dtype=torch.float32)
        sum_all(self._codec, got[:, _HEAD_BYTES : _HEAD_BYTES + size], total)
        return total


def _place(lies: Sequence[tuple[str, int]], element: int) -> int:
    """Which of a unit's parameters has this element of a rank's part."""
    ends = accumulate(numel for _, numel in lies)
    return next((place for place, end in enumerate(ends) if element < end), len(lies) - 1)


def _heads(codes: torch.Tensor) -> torch.Tensor:
    """The integer at the beginning of each code, `[codes, 1]`; a view."""
    return codes.view(torch.int64)[:, :1]


class _Unit:
    """One FSDP unit's reduce-scatter, as torch calls it once for each backward pass."""

    def __init__(self, sums: ShardSums, number: int, lies: Sequence[tuple[str, int]]) -> None:
        self._sums = sums
        self._number = number
        self._lies = lies

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
        output_tensor.copy_(self._sums.sum(self._number, input_tensor, group, self._lies))
