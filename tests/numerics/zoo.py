"""Small random models of many architectures, each with its samples and its loss: what every plan must compute alike.

Nothing is downloaded: a model is its class and a small configuration. Dropout is 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

Batch = dict[str, torch.Tensor]
Family = Literal["decoder", "encoder", "encoder-decoder", "vision", "mixture-of-experts"]

VOCABULARY = 96
SEQUENCE = 12
LABELS = 5


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture: how to make it, and what it is trained on."""

    name: str
    family: Family
    make: Callable[[], nn.Module]
    task: Literal["causal", "masked", "sequence-to-sequence", "labels", "image"]

    def batch(self, samples: int, seed: int) -> Batch:
        """`samples` random samples."""
        made = torch.Generator().manual_seed(seed)

        def tokens(length: int) -> torch.Tensor:
            return torch.randint(3, VOCABULARY, (samples, length), generator=made)

        match self.task:
            case "causal" | "masked":
                return {"input_ids": tokens(SEQUENCE), "labels": tokens(SEQUENCE)}
            case "sequence-to-sequence":
                return {"input_ids": tokens(SEQUENCE), "decoder_input_ids": tokens(8), "labels": tokens(8)}
            case "labels":
                return {"input_ids": tokens(SEQUENCE), "labels": torch.randint(LABELS, (samples,), generator=made)}
            case "image":
                pixels = torch.randn(samples, 3, 32, 32, generator=made, dtype=torch.float64)
                return {"pixel_values": pixels, "labels": torch.randint(LABELS, (samples,), generator=made)}


def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """The summed cross entropy over all labels, and how many there are."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(next(p.dtype for p in model.parameters()))
    extra = {} if "pixel_values" in inputs else {"use_cache": False} if _caches(model) else {}
    logits = model(**inputs, **extra).logits
    labels = batch["labels"]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum"), labels.numel()


def _caches(model: nn.Module) -> bool:
    return bool(getattr(model.config, "use_cache", None) is not None)


def _hf(auto: str, kind: str, **values: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = transformers.AutoConfig.for_model(kind, **values)
        # The grouped kernels of experts know no float64.
        more = {"experts_implementation": "eager"} if "num_experts_per_tok" in values else {}
        return getattr(transformers, auto).from_config(config, **more)

    return make


def _sizes(**more: Any) -> dict[str, Any]:
    """The usual names of the usual sizes."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


_KV = {"num_key_value_heads": 2}
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}


def _decoder(name: str, kind: str, family: Family = "decoder", **values: Any) -> Architecture:
    return Architecture(name, family, _hf("AutoModelForCausalLM", kind, **values), "causal")


ARCHITECTURES: tuple[Architecture, ...] = (
    _decoder("llama", "llama", **_sizes(**_KV)),
    _decoder("mistral", "mistral", **_sizes(**_KV, sliding_window=None)),
    _decoder("qwen2", "qwen2", **_sizes(**_KV)),
    _decoder("qwen3", "qwen3", **_sizes(**_KV, head_dim=8)),
    _decoder("gemma", "gemma", **_sizes(**_KV, head_dim=8)),
    _decoder("gemma2", "gemma2", **_sizes(**_KV, head_dim=8, query_pre_attn_scalar=8, sliding_window=8)),
    _decoder("phi", "phi", **_sizes(**{"num_key_value_heads": 4}, resid_pdrop=0.0, embd_pdrop=0.0)),
    _decoder("phi3", "phi3", **_sizes(**_KV, original_max_position_embeddings=32)),
    _decoder("stablelm", "stablelm", **_sizes(**_KV)),
    _decoder("olmo2", "olmo2", **_sizes(**_KV)),
    _decoder("starcoder2", "starcoder2", **_sizes(**_KV, embedding_dropout=0.0, residual_dropout=0.0)),
    _decoder("gpt_neox", "gpt_neox", **_sizes(hidden_dropout=0.0, attention_dropout=0.0)),
    _decoder(
        "gpt2",
        "gpt2",
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    _decoder("opt", "opt", **_sizes(ffn_dim=64, dropout=0.0, attention_dropout=0.0, word_embed_proj_dim=32)),
    _decoder(
        "bloom",
        "bloom",
        vocab_size=VOCABULARY,
        hidden_size=32,
        n_layer=4,
        n_head=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    _decoder("falcon", "falcon", **_sizes(new_decoder_architecture=False, multi_query=False, bias=True, alibi=False)),
    _decoder(
        "mixtral",
        "mixtral",
        "mixture-of-experts",
        **_sizes(**_KV, **_EXPERTS, num_local_experts=4, sliding_window=None),
    ),
    _decoder(
        "qwen2_moe",
        "qwen2_moe",
        "mixture-of-experts",
        **_sizes(
            **_KV,
            **_EXPERTS,
            num_experts=4,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            decoder_sparse_step=1,
        ),
    ),
    Architecture("bert", "encoder", _hf("AutoModelForMaskedLM", "bert", **_sizes(**_QUIET)), "masked"),
    Architecture("roberta", "encoder", _hf("AutoModelForMaskedLM", "roberta", **_sizes(**_QUIET)), "masked"),
    Architecture(
        "electra",
        "encoder",
        _hf("AutoModelForMaskedLM", "electra", **_sizes(**_QUIET, embedding_size=32)),
        "masked",
    ),
    Architecture(
        "distilbert",
        "encoder",
        _hf(
            "AutoModelForMaskedLM",
            "distilbert",
            vocab_size=VOCABULARY,
            dim=32,
            hidden_dim=64,
            n_layers=4,
            n_heads=4,
            max_position_embeddings=32,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        "masked",
    ),
    Architecture(
        "t5",
        "encoder-decoder",
        _hf(
            "AutoModelForSeq2SeqLM",
            "t5",
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        "sequence-to-sequence",
    ),
    Architecture(
        "bart",
        "encoder-decoder",
        _hf(
            "AutoModelForSeq2SeqLM",
            "bart",
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=32,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        "sequence-to-sequence",
    ),
    Architecture(
        "vit",
        "vision",
        _hf(
            "AutoModelForImageClassification",
            "vit",
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            num_labels=LABELS,
            **_QUIET,
        ),
        "image",
    ),
    Architecture(
        "deit",
        "vision",
        _hf(
            "AutoModelForImageClassification",
            "deit",
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            num_labels=LABELS,
            architectures=["DeiTForImageClassification"],
            **_QUIET,
        ),
        "image",
    ),
)

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
