"""The models whose plans are timed: small enough for two cores, unlike in what binds them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gpt"))

from model import GPT, VOCABULARY, ModelConfig
from model import loss as gpt_loss


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with its data. `batch(size)` gives that many samples, `make()` the model by torch's generator."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]
    global_batch: int

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """As the example trains."""
        return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)


def _gpt(global_batch: int, **sizes: int) -> Case:
    config = ModelConfig(**sizes)

    def batch(size: int) -> torch.Tensor:
        return torch.randint(VOCABULARY, (size, config.context + 1), dtype=torch.uint8)

    return Case(make=lambda: GPT(config), batch=batch, loss=gpt_loss, global_batch=global_batch)


def _llama(global_batch: int, tokens: int) -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=2048,
        max_position_embeddings=tokens,
        attn_implementation="sdpa",
    )

    def batch(size: int) -> torch.Tensor:
        return torch.randint(config.vocab_size, (size, tokens + 1))

    def loss(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        targets = batch[:, 1:].reshape(-1)
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum"), targets.numel()

    return Case(make=lambda: LlamaForCausalLM(config), batch=batch, loss=loss, global_batch=global_batch)


MODELS = {
    # The example as it is: computation binds.
    "gpt": _gpt(16),
    # Wide and short: many parameters for few tokens, so that exchanging them binds.
    "wide": _gpt(16, layers=4, width=512, heads=8, context=32),
    # Grouped heads and a larger vocabulary.
    "llama": _llama(16, 64),
}
