"""Parameters gathered along dp_shard as int8 codes instead of whole numbers: FSDP2's all-gather, replaced.

Each rank hands out the code of its shard, and all ranks, its owner among them, compute with what the codes say, so that
they compute alike. The shard itself stays exact: what an optimizer adds to it is never rounded away. As in ZeRO++
(Wang et al., 2023, arXiv:2306.10209): blocks with a scale each, rounded to the nearest. Parameters of one dimension,
such as norms and biases, are few and travel as they are.

What torch promises and what is relied upon: `set_custom_all_gather` hands in a flat buffer of this rank's shards,
padded to equal size on all ranks, and wants those of all ranks by rank. Where in it a parameter lies is taken from the
order in which torch lists a unit's parameters; were that another, blocks would begin elsewhere, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from distroml.planner import PlanRefused
from distroml.runtime.comm import WireCount
from distroml.runtime.comm.algorithms import Arrangement
from distroml.runtime.comm.rounds import Peers
from distroml.runtime.compress import Round
from distroml.runtime.parallel.units import own_parameters, shard_numel, units_of

GATHER_CODECS = ("int8",)
_AXIS, _SCHEME = "dp_shard", "int8 gather"
_BLOCK, _TOP = 256, 127
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Stretch:
    """`numel` elements of a rank's buffer from `start` on, of one parameter; as codes, or as they are."""

    start: int
    numel: int
    coded: bool

    @property
    def blocks(self) -> int:
        """How many scales it has."""
        return -(-self.numel // _BLOCK) if self.coded else 0

    def size(self, item: int) -> int:
        """Bytes that it takes on the wire, with elements of `item` bytes."""
        return _SCALE_BYTES * self.blocks + self.numel if self.coded else item * self.numel


def encode(given: torch.Tensor, stretches: Sequence[Stretch]) -> torch.Tensor:
    """The code of one rank's buffer, uint8: each stretch's scales, float32, then its codes, one int8 for each element.

    A block with an element that is no finite number comes back as one without any.
    """
    parts: list[torch.Tensor] = []
    for stretch in stretches:
        own = given[stretch.start : stretch.start + stretch.numel]
        if not stretch.coded:
            parts.append(own.contiguous().view(torch.uint8))
            continue
        blocks = nn.functional.pad(own.float(), (0, -stretch.numel % _BLOCK)).view(-1, _BLOCK)
        scales = blocks.abs().amax(1) / _TOP
        codes = torch.where(scales[:, None] > 0, blocks / scales[:, None], 0.0).nan_to_num(0.0).round_()
        parts += [scales.view(torch.uint8), codes.to(torch.int8).view(-1)[: stretch.numel].view(torch.uint8)]
    return torch.cat(parts)


def decode(codes: torch.Tensor, stretches: Sequence[Stretch], out: torch.Tensor) -> None:
    """Write what `codes`, uint8 `[ranks, n]`, say to `out`, `[ranks, elements]`."""
    at = 0
    for stretch in stretches:
        to = out[:, stretch.start : stretch.start + stretch.numel]
        size = stretch.size(out.element_size())
        part = codes[:, at : at + size]
        at += size
        if not stretch.coded:
            to.copy_(part.clone(memory_format=torch.contiguous_format).view(out.dtype))
            continue
        cut = _SCALE_BYTES * stretch.blocks
        scales = part[:, :cut].clone(memory_format=torch.contiguous_format).view(torch.float32)
        values = part[:, cut:].clone(memory_format=torch.contiguous_format).view(torch.int8).float()
        padded = nn.functional.pad(values, (0, -stretch.numel % _BLOCK)).view(len(codes), -1, _BLOCK)
        to.copy_((padded * scales[:, :, None]).view(len(codes), -1)[:, : stretch.numel])


class ShardGathers:
    """The coded gathers of all FSDP units of one rank.

    Args:
        ranks: along dp_shard.
        arrangement: of them on nodes, by which bytes are counted; None: they share one.
    """

    def __init__(self, ranks: int, arrangement: Arrangement | None = None) -> None:
        self._ranks = ranks
        self._arrangement = arrangement
        self.wire = WireCount()

    def take_over(self, stages: Sequence[nn.Module]) -> None:
        """Gather the parameters of every FSDP unit within these modules.

        Raises:
            PlanRefused: a unit has parameters of several kinds, or that are no real floating-point numbers.
        """
        for unit in units_of(stages):
            own = list(own_parameters(unit))
            kinds = {parameter.dtype for parameter in own}
            if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
                raise PlanRefused(
                    f"compress_gather='int8' is not possible: {type(unit).__name__} has parameters of "
                    f"{', '.join(sorted(map(str, kinds)))}, and what is gathered together must be real numbers of one "
                    "kind; leave out compress_gather, or give the parameters one dtype"
                )
            cast("Any", unit).set_custom_all_gather(_Unit(self, _stretches(own, self._ranks)))

    def gather(self, given: torch.Tensor, stretches: Sequence[Stretch], group: dist.ProcessGroup) -> torch.Tensor:
        """What the codes of all ranks' buffers say, `[ranks, elements]`, the same on every rank. Raises `PeerLost`."""
        peers = Peers(group, None, self._arrangement)
        codes = peers.make(Round("gather", encode(given, stretches)))
        for level, sent in peers.take().items():
            self.wire.add(_AXIS, level, _SCHEME, sent)
        out = given.new_empty(peers.world_size, given.numel())
        decode(codes, stretches, out)
        return out


def _stretches(parameters: Sequence[nn.Parameter], ranks: int) -> list[Stretch]:
    """Where the parameters' shards lie in each rank's buffer."""
    found: list[Stretch] = []
    start = 0
    for parameter in parameters:
        numel = shard_numel(parameter, ranks)
        found.append(Stretch(start, numel, coded=parameter.dim() > 1))
        start += numel
    return found


class _Unit:
    """One FSDP unit's all-gather, as torch calls it before each forward and backward pass that needs it."""

    def __init__(self, gathers: ShardGathers, stretches: Sequence[Stretch]) -> None:
        self._gathers = gathers
        self._stretches = stretches
        self._numel = sum(stretch.numel for stretch in stretches)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A buffer for torch to fill."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        """Fill `output_tensor`; complete on return, whatever torch asks for. `input_tensor` is a part of it."""
        if input_tensor.numel() != self._numel:
            raise RuntimeError(
                f"torch gathers {input_tensor.numel()} elements of a unit whose shards have {self._numel}; leave out "
                "compress_gather"
            )
        whole = self._gathers.gather(input_tensor, self._stretches, group)
        output_tensor.view(whole.shape).copy_(whole)
