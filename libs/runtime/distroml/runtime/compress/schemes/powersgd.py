"""PowerSGD: the sum of matrices as the product of two thin factors, found by one step of power iteration.

Vogels et al. (2019), algorithm 1 and 2, with error feedback and the second factor kept as the next step's start. Two
things differ. A rank's residual is its own gradient less its own projection, not less the mean of all: over all ranks
both sum to the same, but this one holds nothing that other ranks' residuals undo. And what codes of the second factor
lose goes into the residual, too; the first one is only a basis and may lose anything.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.codecs import BF16, FLOAT32
from distroml.runtime.compress.layout import Layout, Piece
from distroml.runtime.compress.lowrank import Matrices, orthogonalise, project, project_back, restore, subtract
from distroml.runtime.compress.scheme import Round, State, Turn
from distroml.runtime.compress.schemes.exchange import Section, exchange, exchange_bytes, part_of
from distroml.runtime.compress.schemes.kept import deliver, gather_up
from distroml.runtime.compress.schemes.matrices import divide, refreshed
from distroml.runtime.compress.schemes.seeds import seed_of
from distroml.runtime.typed import split_flat

_START = "powersgd.q"
_BASIS, _FACTOR, _FRESH = range(3)


@dataclass(frozen=True, slots=True)
class PowerSGD:
    """Rank `rank` for matrices whose factors take at most half of the bytes that they take whole; the rest whole.

    So a rank above what a matrix has is never used: that matrix goes whole, in the codec `rest`, with error feedback.
    """

    rank: int
    factors: Codec = FLOAT32
    rest: Codec = BF16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"PowerSGD needs a rank of 1 or more, not {self.rank}")

    @property
    def name(self) -> str:
        """See `Scheme`."""
        return f"powersgd:{self.rank}" + ("" if self.factors == FLOAT32 else f"+{self.factors.name}")

    def pays(self, rows: int, columns: int) -> bool:
        """Whether a matrix goes as two factors."""
        factors = self.factors.size(self.rank * rows) + self.factors.size(self.rank * columns)
        return self.rank < min(rows, columns) and 2 * factors <= self.rest.size(rows * columns)

    def prepare(self, layout: Layout, world_size: int, device: torch.device) -> State:
        """See `Scheme`. The first exchange makes its own start."""
        return State(torch.zeros(layout.numel, device=device))

    def rounds(self, flat: torch.Tensor, layout: Layout, state: State, turn: Turn) -> Generator[Round, torch.Tensor]:
        """See `Scheme`. A world of one loses nothing, and is told all that was kept."""
        if turn.world_size == 1:
            deliver(flat, state, turn)
            return
        batches, whole = divide(layout, self.pays)
        residual = gather_up(flat, state, turn)

        starts = self._starts(batches, state, turn, flat.device)
        basis = _joined([project(residual, None, 1.0, *both) for both in zip(batches, starts, strict=True)], flat)
        rest = _cut(residual, whole)
        lost, part = torch.zeros_like(rest), part_of(rest.numel(), turn.world_size, turn.rank)
        owned = torch.zeros_like(rest[part])
        yield from exchange([Section(self.factors, basis), Section(self.rest, rest, lost, owned)], turn, _BASIS)
        lost[part].add_(owned)
        _paste(lost, residual, whole)
        _paste(rest.mul_(turn.unit), flat, whole)

        bases = self._factors(basis, [(batch.offsets.numel(), batch.rows) for batch in batches])
        for one in bases:
            orthogonalise(one)
        factor = _joined([project_back(residual, *both) for both in zip(batches, bases, strict=True)], flat)
        told = factor.clone()
        lost, part = torch.zeros_like(factor), part_of(factor.numel(), turn.world_size, turn.rank)
        owned = torch.zeros_like(factor[part])
        yield from exchange([Section(self.factors, factor, lost, owned)], turn, _FACTOR)
        told.sub_(lost)
        told[part].sub_(owned)
        sides = [(batch.offsets.numel(), batch.columns) for batch in batches]
        for batch, one, mine in zip(batches, bases, self._factors(told, sides), strict=True):
            subtract(residual, 1.0, batch, one, mine)
        for batch, one, all_ in zip(batches, bases, self._factors(factor * turn.unit, sides), strict=True):
            restore(flat, batch, one, all_)
        state.extra[_START] = factor

    def takes_back(self, layout: Layout, world_size: int) -> bool:
        """See `Scheme`."""
        return False

    def sent_bytes(self, layout: Layout, world_size: int) -> int:
        """See `Scheme`."""
        batches, whole = divide(layout, self.pays)
        basis = self.rank * sum(batch.offsets.numel() * batch.rows for batch in batches)
        factor = self.rank * sum(batch.offsets.numel() * batch.columns for batch in batches)
        first = [(self.factors, basis), (self.rest, sum(piece.numel for piece in whole))]
        return exchange_bytes(first, world_size) + exchange_bytes([(self.factors, factor)], world_size)

    def _factors(self, told: torch.Tensor, sides: list[tuple[int, int]]) -> list[torch.Tensor]:
        """`[count, side, rank]` of each batch, from what `_joined` gives."""
        parts = split_flat(told, [count * side * self.rank for count, side in sides])
        return [
            part.view(count, self.rank, side).mT.contiguous() for part, (count, side) in zip(parts, sides, strict=True)
        ]

    def _starts(self, batches: list[Matrices], state: State, turn: Turn, device: torch.device) -> list[torch.Tensor]:
        """Where the power iteration of each batch begins: at the last second factor, or at random numbers."""
        sides = [(batch.offsets.numel(), batch.columns) for batch in batches]
        numel = self.rank * sum(count * columns for count, columns in sides)
        last = state.extra.get(_START)
        if last is None or last.numel() != numel:
            last = torch.zeros(numel, device=device)
        return [
            refreshed(factor, seed_of(turn, _FRESH, number)) for number, factor in enumerate(self._factors(last, sides))
        ]


def _joined(factors: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Factors of all batches as one vector, by column: a code's block then holds numbers of one column."""
    return torch.cat([like[:0], *(factor.mT.reshape(-1) for factor in factors)])


def _cut(buffer: torch.Tensor, pieces: list[Piece]) -> torch.Tensor:
    """The elements of `pieces`, one after another."""
    return torch.cat([buffer[:0], *(buffer[piece.offset : piece.offset + piece.numel] for piece in pieces)])


def _paste(values: torch.Tensor, buffer: torch.Tensor, pieces: list[Piece]) -> None:
    """Put what `_cut` gives back into its places."""
    begin = 0
    for piece in pieces:
        buffer[piece.offset : piece.offset + piece.numel].copy_(values[begin : begin + piece.numel])
        begin += piece.numel
