"""What the schemes compute, written for all ranks at once and without regard to speed: the oracles of the fast ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.codecs.oracle import LIMIT
from distroml.runtime.compress.scheme import Turn
from distroml.runtime.compress.schemes.exchange import part_of
from distroml.runtime.compress.schemes.seeds import seed_of


def coded(
    codec: Codec,
    gradients: Sequence[torch.Tensor],
    residuals: Sequence[torch.Tensor],
    owned: Sequence[torch.Tensor] | None,
    turns: Sequence[Turn],
) -> torch.Tensor:
    """The sum of codes of every rank's raw gradients; `residuals`, and `owned` where there are two phases, change."""
    numel, ranks, unit = gradients[0].numel(), len(turns), turns[0].unit
    if owned is None:
        told = torch.zeros(numel)
        for turn, gradient, residual in zip(turns, gradients, residuals, strict=True):
            told += _through(codec, gradient, residual, unit, seed_of(turn, 0, 0, turn.rank))
        return told
    parts: list[torch.Tensor] = []
    for owner, mine in enumerate(owned):
        part = part_of(numel, ranks, owner)
        told = torch.zeros(mine.numel())
        for turn, gradient, residual in zip(turns, gradients, residuals, strict=True):
            told += _through(codec, gradient[part], residual[part], unit, seed_of(turn, 0, 0, turn.rank, owner))
        told.clamp_(-LIMIT, LIMIT)
        parts.append(_through(codec, told, mine, unit, seed_of(turns[owner], 0, 0, owner, ranks)))
    return torch.cat(parts)


def _through(codec: Codec, vector: torch.Tensor, residual: torch.Tensor, unit: float, seed: int) -> torch.Tensor:
    """What arrives of a vector and the residual with it."""
    arrived = torch.zeros(vector.numel())
    if vector.numel():
        code = torch.zeros(codec.size(vector.numel()), dtype=torch.uint8)
        codec.encode(vector, residual, unit, seed, code)
        codec.add(code, arrived)
    return arrived


def chosen(numel: int, count: int, seed: int) -> list[int]:
    """The elements that random-K tells: one of each of `count` stretches."""
    folded, places = (seed ^ seed >> 32) % 2**32, list[int]()
    for index in range(count):
        begin, end = index * numel // count, (index + 1) * numel // count
        places.append(begin + (_lowbias32(index ^ folded) * (end - begin) >> 32))
    return places


def _lowbias32(x: int) -> int:
    """Wellons, 2018."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def low_rank(
    matrices: Sequence[torch.Tensor], start: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """PowerSGD's sum of one matrix over the ranks (Vogels et al., 2019, algorithm 1), by QR in float64.

    Args:
        matrices: `[rows, columns]` of every rank, residuals added.
        start: `[columns, rank]`, of full rank.

    Returns:
        The sum that is told, what each rank keeps, and where the next step starts.
    """
    wide = [matrix.double() for matrix in matrices]
    basis: torch.Tensor = cast("Any", torch.linalg).qr(sum(matrix @ start.double() for matrix in wide))[0]
    factors = [matrix.mT @ basis for matrix in wide]
    kept = [matrix - basis @ factor.mT for matrix, factor in zip(wide, factors, strict=True)]
    factor = torch.stack(factors).sum(0)
    return basis @ factor.mT, kept, factor
