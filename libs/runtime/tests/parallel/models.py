"""A small chain with every oddity that a plan must cope with, each to be turned on by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Batch = dict[str, torch.Tensor]

ROWS = 11
LENGTH = 5
PADDING = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """What is odd about a model.

    Attributes:
        width: of what flows from block to block; 6 shares out unevenly over 4 ranks, as the 11 rows do over any.
        tied: embedding and head are one parameter.
        unused: a layer that no pass reaches.
        late: a layer that only the later samples of a step reach: some ranks have a gradient, others none.
        frozen: the embedding and the first block are not trained.
        batch_norm: blocks normalise over the samples of a microbatch.
        dropout: share of what is dropped before, inside and after what tp splits.
        blocks: of the chain.
    """

    width: int = 6
    tied: bool = False
    unused: bool = False
    late: bool = False
    frozen: bool = False
    batch_norm: bool = False
    dropout: float = 0.0
    blocks: int = 4


class Block(nn.Module):
    """A feed-forward block around a residual stream."""

    def __init__(self, quirks: Quirks) -> None:
        super().__init__()
        width = quirks.width
        self.norm = nn.BatchNorm1d(LENGTH) if quirks.batch_norm else nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.before, self.inside, self.after = (nn.Dropout(quirks.dropout) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.after(self.down(self.inside(torch.tanh(self.up(self.before(self.norm(x)))))))


class Reader(nn.Module):
    """Tells the next token."""

    def __init__(self, quirks: Quirks) -> None:
        super().__init__()
        self.embed = nn.Embedding(ROWS, quirks.width)
        self.late = nn.Linear(quirks.width, quirks.width) if quirks.late else None
        self.unused = nn.Linear(3, 3) if quirks.unused else None
        self.blocks = nn.ModuleList(Block(quirks) for _ in range(quirks.blocks))
        self.norm = nn.LayerNorm(quirks.width)
        self.head = nn.Linear(quirks.width, ROWS, bias=False)
        if quirks.tied:
            self.head.weight = self.embed.weight
        if quirks.frozen:
            self.embed.requires_grad_(False)
            self.blocks[0].requires_grad_(False)

    def forward(self, tokens: torch.Tensor, late: bool = False) -> torch.Tensor:
        x = self.embed(tokens)
        if self.late is not None and late:
            x = x + self.late(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make(quirks: Quirks, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model; its weights follow torch's generator."""
    return Reader(quirks).to(dtype)


def samples(count: int, seed: int) -> Batch:
    """`count` samples with padding: their losses have different numbers of terms."""
    made = torch.Generator().manual_seed(seed)
    tokens = torch.randint(ROWS, (count, LENGTH), generator=made)
    lengths = torch.randint(1, LENGTH + 1, (count,), generator=made)
    targets = torch.where(torch.arange(LENGTH) < lengths[:, None], tokens.roll(1, 1), PADDING)
    return {"tokens": tokens, "targets": targets, "number": torch.arange(count)}


def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over the terms that are there, and how many those are. Samples 4 and up of a step are late."""
    more: dict[str, Any] = {"late": True} if int(batch["number"][0]) >= 4 else {}
    logits = model(batch["tokens"], **more)
    targets = batch["targets"].flatten()
    total = F.cross_entropy(logits.flatten(0, 1).double(), targets, ignore_index=PADDING, reduction="sum")
    return total, (targets != PADDING).sum()
