"""Small models of many architectures with random weights: what is cut, and a loss and batches for it."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[4] / "examples" / "gpt"))

VOCAB, LENGTH, SAMPLES = 61, 7, 2


@dataclass
class Model:
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]
    batch: Callable[[torch.Generator], Any]
    blocks: list[str] = field(default_factory=list)


def tokens(generator: torch.Generator) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCAB, (SAMPLES, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, LENGTH - 2 :] = 0  # padding at the end of one sample
    labels = torch.where(mask == 1, ids.roll(-1, 1), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pairs(generator: torch.Generator) -> dict[str, torch.Tensor]:
    source = tokens(generator)
    target = torch.randint(3, VOCAB, (SAMPLES, LENGTH - 2), generator=generator)
    return {
        "input_ids": source["input_ids"],
        "attention_mask": source["attention_mask"],
        "decoder_input_ids": target,
        "labels": target.roll(-1, 1),
    }


def images(generator: torch.Generator) -> dict[str, torch.Tensor]:
    pixels = torch.randn(SAMPLES, 3, 8, 8, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.randint(0, 5, (SAMPLES,), generator=generator)}


def summed(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"].reshape(-1)
    logits = model(**inputs).logits
    total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, ignore_index=-100, reduction="sum")
    return total, (labels != -100).sum()


def gpt() -> Model:
    from model import GPT, ModelConfig, loss

    return Model(
        lambda: GPT(ModelConfig(layers=4, width=16, heads=2, context=LENGTH)),
        loss,
        lambda generator: torch.randint(0, 255, (SAMPLES, LENGTH + 1), generator=generator),
        [f"blocks.{i}" for i in range(4)],
    )


WIDE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 24}
COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {**COMMON, **WIDE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {**COMMON, **WIDE, "num_key_value_heads": 2, "attention_dropout": 0.0}

TIED = {**DECODER, "tie_word_embeddings": True, "use_cache": False}  # recomputation would fill a cache twice
SLIDING = {**DECODER, "sliding_window": 4}
EXPERTS = {**DECODER, "num_local_experts": 4, "experts_implementation": "eager"}
LAYERS = ["model.layers"]

# Name: class, configuration, where the blocks are, batches.
HF: dict[str, tuple[str, str, dict[str, Any], list[str], Any]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, LAYERS, tokens),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", TIED, LAYERS, tokens),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**DECODER, "use_sliding_window": False}, LAYERS, tokens),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 4}, LAYERS, tokens),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**SLIDING, "head_dim": 4}, LAYERS, tokens),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**SLIDING, "head_dim": 4}, LAYERS, tokens),
    "mistral": ("MistralForCausalLM", "MistralConfig", SLIDING, LAYERS, tokens),
    "phi": ("PhiForCausalLM", "PhiConfig", {**DECODER, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, LAYERS, tokens),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**DECODER, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, LAYERS, tokens),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", EXPERTS, LAYERS, tokens),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", DECODER, LAYERS, tokens),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", DECODER, LAYERS, tokens),
    "cohere": ("CohereForCausalLM", "CohereConfig", DECODER, LAYERS, tokens),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 16, "n_layer": 4, "n_head": 4, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2},
        ["transformer.h"], tokens,
    ),
    "dropout": ("BertForMaskedLM", "BertConfig", {**COMMON, **WIDE}, ["bert.encoder.layer"], tokens),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {**COMMON, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 24,
         "word_embed_proj_dim": 16, "dropout": 0.0, "attention_dropout": 0.0},
        ["model.decoder.layers"], tokens,
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 4, "n_head": 4, "pad_token_id": 0, "hidden_dropout": 0.0,
         "attention_dropout": 0.0},
        ["transformer.h"], tokens,
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM", "GPTNeoXConfig", {**ENCODER, "hidden_dropout": 0.0, "attention_dropout": 0.0},
        ["gpt_neox.layers"], tokens,
    ),
    "falcon": (
        "FalconForCausalLM", "FalconConfig",
        {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
         "hidden_dropout": 0.0, "attention_dropout": 0.0, "alibi": False, "bos_token_id": 1, "eos_token_id": 2},
        ["transformer.h"], tokens,
    ),
    "bert": ("BertForMaskedLM", "BertConfig", ENCODER, ["bert.encoder.layer"], tokens),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", ENCODER, ["roberta.encoder.layer"], tokens),
    "distilbert": (
        "DistilBertForMaskedLM", "DistilBertConfig",
        {"vocab_size": VOCAB, "max_position_embeddings": 32, "dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 24,
         "dropout": 0.0, "attention_dropout": 0.0, "pad_token_id": 0},
        ["distilbert.transformer.layer"], tokens,
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig",
        {**WIDE, "image_size": 8, "patch_size": 4, "num_labels": 5, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0},
        ["vit.encoder.layer", "vit.layers"], images,
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 3,
         "num_heads": 4, "dropout_rate": 0.0, "use_cache": False, "pad_token_id": 0, "decoder_start_token_id": 0},
        ["encoder.block", "decoder.block"], pairs,
    ),
    "bart": (
        "BartForConditionalGeneration", "BartConfig",
        {**COMMON, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.0,
         "attention_dropout": 0.0, "activation_dropout": 0.0},
        ["model.encoder.layers", "model.decoder.layers"], pairs,
    ),
}  # fmt: skip


def hugging_face(name: str) -> Model:
    import transformers

    model_class, config_class, options, chains, batch = HF[name]

    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(transformers, config_class)(**options)
            return getattr(transformers, model_class)(config)

    with torch.device("meta"):
        hollow = make()
    blocks = [
        f"{chain}.{number}"
        for chain in chains
        if any(path == chain for path, _ in hollow.named_modules())
        for number in range(len(hollow.get_submodule(chain)))
    ]
    return Model(make, summed, batch, blocks)


def model(name: str) -> Model:
    return gpt() if name == "gpt" else hugging_face(name)
