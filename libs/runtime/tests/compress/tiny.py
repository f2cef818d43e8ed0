"""Two codecs of a few lines, one dense and rounding, one sparse, and buffers to exchange."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distroml.runtime.compress import Layout, Piece, State


@dataclass(frozen=True)
class Grid:
    """int8 over one float32 scale, rounded up or down at random."""

    name = "grid"
    unbiased = True

    def size(self, numel):
        return 4 + numel

    def encode(self, vector, residual, carry, seed, out, *, finite=False):
        true = vector if residual is None else vector + carry * residual
        scale = true.abs().max().clamp(min=1e-30) / 127
        noise = torch.rand(len(true), generator=torch.Generator().manual_seed(seed >> 1))
        out[:4].view(torch.float32).copy_(scale)
        codes = out[4:].view(torch.int8).copy_((true / scale + noise).floor().clamp(-127, 127))
        if residual is not None:
            residual.copy_((true - codes * scale) / carry)

    def add(self, code, total):
        total += code[4:].view(torch.int8) * code[:4].view(torch.float32)


@dataclass(frozen=True)
class Few:
    """The `ratio` largest elements, as int32 and float32."""

    ratio: float
    name = "few"
    unbiased = False

    def size(self, numel):
        return 8 * max(1, int(self.ratio * numel))

    def encode(self, vector, residual, carry, seed, out, *, finite=False):
        true = vector if residual is None else vector + carry * residual
        where = true.abs().topk(self.size(len(true)) // 8).indices
        half = len(out) // 2
        out[:half].view(torch.int32).copy_(where)
        out[half:].view(torch.float32).copy_(true[where])
        if residual is not None:
            residual.copy_(true / carry)
            residual[where] = 0

    def add(self, code, total):
        half = len(code) // 2
        total[code[:half].view(torch.int32).long()] += code[half:].view(torch.float32)


def laid_out(shapes: Sequence[tuple[int, ...]], gap: int = 16) -> Layout:
    """Pieces of these shapes on cache lines, with `gap` elements of padding behind each."""
    pieces: list[Piece] = []
    offset = 0
    for number, shape in enumerate(shapes):
        pieces.append(Piece(f"piece{number}", offset, shape))
        offset += -(-pieces[-1].numel // 16) * 16 + gap
    return Layout(offset, tuple(pieces))


def gradients(layout: Layout, ranks: int, seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    """Random buffers, zero where no piece is."""
    generator = torch.Generator().manual_seed(seed)
    flats = [torch.zeros(layout.numel) for _ in range(ranks)]
    for flat in flats:
        for piece in layout.pieces:
            flat[piece.offset : piece.offset + piece.numel] = scale * torch.randn(piece.numel, generator=generator)
    return flats


def kept(states: Sequence[State], numel: int) -> torch.Tensor:
    """What all ranks keep of gradients, normalised, in float64."""
    total = torch.zeros(numel, dtype=torch.float64)
    for state in states:
        if state.residual is not None:
            total += state.residual
        if state.owned is not None:
            total[state.owned_from : state.owned_from + state.owned.numel()] += state.owned
    return total
