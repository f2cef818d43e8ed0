"""Small random models of many architectures: what each is, its blocks, a batch, and the summed loss of it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F

VOCABULARY = 64
BATCH, TIME = 2, 7
SIZES = {
    "vocab_size": VOCABULARY,
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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
NO_DROPOUT = ("hidden_dropout", "attention_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop", "dropout")
NO_DROPOUT += ("hidden_dropout_prob", "attention_probs_dropout_prob", "embed_dropout", "activation_dropout")
NO_DROPOUT += ("dropout_rate", "drop_path_rate")


@dataclass(frozen=True)
class Entry:
    """One architecture."""

    name: str
    make: Callable[[], nn.Module]
    blocks: tuple[str, ...]
    loss: Callable[[nn.Module], torch.Tensor]


def _tokens(seed: int = 0, time: int = TIME) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, time), generator=torch.Generator().manual_seed(seed))


def _summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def _next_token(model: nn.Module) -> torch.Tensor:
    tokens = _tokens()
    return _summed(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:])


def _masked(model: nn.Module) -> torch.Tensor:
    mask = torch.ones(BATCH, TIME, dtype=torch.long)
    mask[1, -2:] = 0
    return _summed(model(input_ids=_tokens(), attention_mask=mask).logits, _tokens(1))


def _translate(model: nn.Module) -> torch.Tensor:
    target = _tokens(1, 5)
    return _summed(model(input_ids=_tokens(), decoder_input_ids=target, use_cache=False).logits, target)


def _picture(model: nn.Module) -> torch.Tensor:
    pixels = torch.randn(BATCH, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dtype = next(model.parameters()).dtype
    return _summed(model(pixel_values=pixels.to(dtype)).logits, torch.tensor([1, 0]))


def _hugging_face(
    name: str, kind: str, blocks: str | tuple[str, ...], loss: Callable[[nn.Module], torch.Tensor], **sizes: Any
) -> Entry:
    def make() -> nn.Module:
        torch.manual_seed(0)
        config_type = getattr(transformers, kind).config_class
        config = config_type(**sizes)
        for dropout in NO_DROPOUT:
            if hasattr(config, dropout):
                setattr(config, dropout, 0.0)
        return getattr(transformers, kind)(config).double()

    patterns = (blocks,) if isinstance(blocks, str) else blocks
    paths = tuple(f"{pattern}.{index}" for pattern in patterns for index in range(2))
    return Entry(name, make, paths, loss)


def _example() -> Entry:
    path = Path(__file__).parents[4] / "examples" / "gpt" / "model.py"
    spec = importlib.util.spec_from_file_location("example_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    gpt = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["example_gpt"] = gpt
    spec.loader.exec_module(gpt)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return gpt.GPT(gpt.ModelConfig(layers=2, width=32, heads=4, context=16)).double()

    return Entry("example_gpt", make, ("blocks.0", "blocks.1"), lambda model: gpt.loss(model, _tokens())[0])


_BERT_SIZES = {**SIZES, "type_vocab_size": 2}
_OLD_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_OLD_GPT |= {"bos_token_id": 1, "eos_token_id": 2}
_VISION = {**{k: v for k, v in SIZES.items() if "token" not in k}, "image_size": 16, "patch_size": 8, "num_labels": 2}

ENTRIES: tuple[Entry, ...] = (
    _example(),
    _hugging_face("llama", "LlamaForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("mistral", "MistralForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("qwen2", "Qwen2ForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("qwen3", "Qwen3ForCausalLM", "model.layers", _next_token, **GROUPED, head_dim=8),
    _hugging_face("gemma", "GemmaForCausalLM", "model.layers", _next_token, **GROUPED, head_dim=8),
    _hugging_face("gemma2", "Gemma2ForCausalLM", "model.layers", _next_token, **GROUPED, head_dim=8),
    _hugging_face("phi", "PhiForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("phi3", "Phi3ForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("gpt2", "GPT2LMHeadModel", "transformer.h", _next_token, **_OLD_GPT),
    _hugging_face("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.layers", _next_token, **SIZES),
    _hugging_face("gptj", "GPTJForCausalLM", "transformer.h", _next_token, **_OLD_GPT, rotary_dim=4),
    _hugging_face(
        "opt", "OPTForCausalLM", "model.decoder.layers", _next_token, **SIZES, ffn_dim=48, word_embed_proj_dim=32
    ),
    _hugging_face("bloom", "BloomForCausalLM", "transformer.h", _next_token, **{**SIZES, "n_layer": 2, "n_head": 4}),
    _hugging_face("falcon", "FalconForCausalLM", "transformer.h", _next_token, **SIZES, multi_query=False),
    _hugging_face(
        "falcon_new",
        "FalconForCausalLM",
        "transformer.h",
        _next_token,
        **SIZES,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    _hugging_face("falcon_mq", "FalconForCausalLM", "transformer.h", _next_token, **SIZES, multi_query=True),
    _hugging_face(
        "falcon_alibi", "FalconForCausalLM", "transformer.h", _next_token, **SIZES, multi_query=False, alibi=True
    ),
    _hugging_face("stablelm", "StableLmForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("olmo2", "Olmo2ForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("starcoder2", "Starcoder2ForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("cohere", "CohereForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face("granite", "GraniteForCausalLM", "model.layers", _next_token, **GROUPED),
    _hugging_face(
        "mpt",
        "MptForCausalLM",
        "transformer.blocks",
        _next_token,
        vocab_size=VOCABULARY,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=32,
    ),
    _hugging_face("mixtral", "MixtralForCausalLM", "model.layers", _next_token, **GROUPED, num_local_experts=4),
    _hugging_face(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "model.layers",
        _next_token,
        **GROUPED,
        **EXPERTS,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    _hugging_face("bert", "BertForMaskedLM", "bert.encoder.layer", _masked, **_BERT_SIZES),
    _hugging_face("roberta", "RobertaForMaskedLM", "roberta.encoder.layer", _masked, **_BERT_SIZES),
    _hugging_face(
        "distilbert",
        "DistilBertForMaskedLM",
        "distilbert.transformer.layer",
        _masked,
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=48,
        n_heads=4,
        n_layers=2,
        max_position_embeddings=32,
    ),
    _hugging_face("electra", "ElectraForMaskedLM", "electra.encoder.layer", _masked, **_BERT_SIZES),
    _hugging_face(
        "deberta_v2",
        "DebertaV2ForMaskedLM",
        "deberta.encoder.layer",
        _masked,
        **_BERT_SIZES,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
    _hugging_face(
        "t5",
        "T5ForConditionalGeneration",
        ("encoder.block", "decoder.block"),
        _translate,
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        decoder_start_token_id=0,
    ),
    _hugging_face(
        "bart",
        "BartForConditionalGeneration",
        ("model.encoder.layers", "model.decoder.layers"),
        _translate,
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    ),
    _hugging_face("vit", "ViTForImageClassification", "vit.layers", _picture, **_VISION),
    _hugging_face("deit", "DeiTForImageClassification", "deit.layers", _picture, **_VISION),
    _hugging_face(
        "convnext",
        "ConvNextForImageClassification",
        "convnext.encoder.stages.1.layers",
        _picture,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_stages=2,
        patch_size=2,
        image_size=16,
        num_labels=2,
    ),
)
BY_NAME = {entry.name: entry for entry in ENTRIES}
