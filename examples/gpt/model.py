"""A small GPT over bytes. Shapes: B batch, T time, D width, H heads, V vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Size of the model; `context` is the most bytes it sees at once."""

    layers: int = 6
    width: int = 256
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added after."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_width = config.width // config.heads
        self.norm_1 = nn.LayerNorm(config.width, bias=False)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.norm_2 = nn.LayerNorm(config.width, bias=False)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        # The heads are counted from what is there: under tensor parallelism a worker has its share of them.
        q, k, v = self.qkv(self.norm_1(x_BTD)).view(B, T, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(seen.transpose(1, 2).reshape(B, T, -1))
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD))))


class GPT(nn.Module):
    """Predicts the next byte at every place."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bytes = nn.Embedding(VOCABULARY, config.width)
        self.places = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        # What is added to the residual stream starts small, so that depth does not grow its variance (GPT-2).
        for block in self.blocks:
            nn.init.normal_(block.out.weight, std=0.02 / math.sqrt(2 * self.config.layers))
            nn.init.normal_(block.down.weight, std=0.02 / math.sqrt(2 * self.config.layers))

    def forward(self, bytes_BT: torch.Tensor) -> torch.Tensor:
        places_T = torch.arange(bytes_BT.shape[1], device=bytes_BT.device)
        x_BTD = self.bytes(bytes_BT) + self.places(places_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))


def loss(model: nn.Module, batch_BT: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The summed cross entropy of every next byte, and how many there are."""
    inputs_BT, targets_BT = batch_BT[:, :-1].long(), batch_BT[:, 1:].long()
    logits_BTV = model(inputs_BT)
    return F.cross_entropy(
        logits_BTV.reshape(-1, VOCABULARY), targets_BT.reshape(-1), reduction="sum"
    ), targets_BT.numel()


@torch.no_grad()
def generate(model: GPT, prompt: bytes, length: int, *, temperature: float, seed: int) -> bytes:
    """`prompt` and `length` bytes that the model thinks may follow."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    text = list(prompt)
    model.eval()
    for _ in range(length):
        window = torch.tensor([text[-model.config.context :]], device=device)
        logits_V = model(window)[0, -1].float().cpu() / temperature
        text.append(int(torch.multinomial(torch.softmax(logits_V, 0), 1, generator=generator)))
    return bytes(text)
