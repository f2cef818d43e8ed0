"""Architectures beside those of `tests.numerics.zoo` that tell tensor parallelism something new."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tests.numerics import zoo
from tests.numerics.zoo import Architecture, Batch

EXAMPLE = Path(__file__).parents[4] / "examples" / "gpt" / "model.py"
SIZES: dict[str, Any] = {
    "vocab_size": zoo.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OLD = {"vocab_size": zoo.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def example() -> ModuleType:
    """The example GPT's own module."""
    if "example_gpt" not in sys.modules:
        spec = importlib.util.spec_from_file_location("example_gpt", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["example_gpt"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["example_gpt"])
    return sys.modules["example_gpt"]


def _example() -> nn.Module:
    gpt = example()
    return gpt.GPT(gpt.ModelConfig(layers=2, width=32, heads=4, context=16))


class SizesFromInput(nn.Module):
    """A block as many write it: heads' sizes come from the input's, which tensor parallelism leaves whole."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        parts = self.qkv(self.norm(x)).chunk(3, dim=2)
        q, k, v = (part.view(B, T, self.heads, D // self.heads).transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(seen.transpose(1, 2).contiguous().view(B, T, D))


class Careless(nn.Module):
    """A model of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(zoo.VOCABULARY, 32)
        self.blocks = nn.ModuleList(SizesFromInput(32, 4) for _ in range(2))
        self.head = nn.Linear(32, zoo.VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class TorchEncoder(nn.Module):
    """Torch's own layers: their attention takes its weights past the linears that hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(zoo.VOCABULARY, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, zoo.VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.words(tokens)))


def hugging_face(kind: str, **values: Any) -> Callable[[], nn.Module]:
    """A factory of the class `kind` with a configuration of these values."""

    def make() -> nn.Module:
        import transformers

        model_type = getattr(transformers, kind)
        return model_type(model_type.config_class(**values))

    return make


def _decoder(name: str, kind: str, **values: Any) -> Architecture:
    return Architecture(name, "decoder", hugging_face(kind, **values), "causal")


MORE = (
    Architecture("example_gpt", "decoder", _example, "causal"),
    Architecture("careless", "decoder", Careless, "causal"),
    Architecture("torch_encoder", "encoder", TorchEncoder, "masked"),
    _decoder("gptj", "GPTJForCausalLM", **OLD, rotary_dim=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    _decoder("granite", "GraniteForCausalLM", **GROUPED),
    _decoder("cohere", "CohereForCausalLM", **GROUPED),
    _decoder(
        "mpt",
        "MptForCausalLM",
        vocab_size=zoo.VOCABULARY,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=32,
    ),
    _decoder("falcon_grouped", "FalconForCausalLM", **SIZES, new_decoder_architecture=True, num_kv_heads=2),
    _decoder("falcon_one_key", "FalconForCausalLM", **SIZES, multi_query=True),
    _decoder("falcon_alibi", "FalconForCausalLM", **SIZES, multi_query=False, alibi=True),
    Architecture(
        "deberta_v2",
        "encoder",
        hugging_face(
            "DebertaV2ForMaskedLM",
            **SIZES,
            **QUIET,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        ),
        "masked",
    ),
    Architecture(
        "convnext",
        "vision",
        hugging_face(
            "ConvNextForImageClassification",
            hidden_sizes=[8, 16],
            depths=[1, 2],
            num_stages=2,
            patch_size=2,
            image_size=32,
            num_labels=zoo.LABELS,
        ),
        "image",
    ),
)
BY_NAME = {**zoo.BY_NAME, **{architecture.name: architecture for architecture in MORE}}


def made(name: str, *, seed: int = 3) -> nn.Module:
    """The model in float64, of equal values in every process."""
    torch.manual_seed(seed)
    return BY_NAME[name].make().double()


def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """The summed cross entropy, and how many terms it has."""
    if not hasattr(model, "config") or not hasattr(model.config, "use_return_dict"):
        logits = model(batch["input_ids"])
        labels = batch["labels"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), labels.numel()
    return zoo.loss(model, batch)
