"""Small models with what makes weights hard: ties, buffers, uneven shapes, plain attributes."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    """A tied head, a buffer that is saved and one that is not (held twice), 13 rows that no mesh divides."""

    def __init__(self, width: int = 16, blocks: int = 4, words: int = 13, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=2)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width))
        self.register_buffer("table", torch.arange(width) / 7, persistent=False)
        self.original_table = self.table

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) * self.scale + self.table
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make() -> Model:
    return Model()


def make_untied() -> Model:
    return Model(tied=False)
