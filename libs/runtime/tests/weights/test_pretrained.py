"""Pretrained files are read by slice under a model's names; what does not fit or is not safe is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from distroml.runtime.parallel.weights import (
    SafetensorsSource,
    WeightsMismatch,
    WeightsRefused,
    materialise,
    named_tensors,
    pretrained,
    record,
)
from libs.runtime.tests.weights.models import Model, make

GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 64,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def gpt2(auto: type = transformers.AutoModelForCausalLM) -> nn.Module:
    return auto.from_config(transformers.AutoConfig.for_model("gpt2", **GPT2))


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_a_hugging_face_folder_fills_a_model(shards: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved = gpt2()
    saved.save_pretrained(tmp_path, max_shard_size=shards)
    blank, first = record(gpt2, 2)
    source = pretrained(tmp_path, blank, first)
    assert source.unused == ()
    materialise(blank, source)
    assert blank.lm_head.weight is blank.transformer.wte.weight
    for name, tensor in named_tensors(saved).items():
        assert torch.equal(named_tensors(blank)[name], tensor), name


def test_the_prefix_of_the_base_model_may_differ(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, bare = gpt2(), gpt2(transformers.AutoModel)
    whole.save_pretrained(tmp_path / "whole")
    bare.save_pretrained(tmp_path / "bare")
    for folder, into, wanted in (
        ("bare", lambda: gpt2(), bare),
        ("whole", lambda: gpt2(transformers.AutoModel), whole.transformer),
    ):
        blank, first = record(into, 2)
        materialise(blank, pretrained(tmp_path / folder, blank, first))
        assert torch.equal(getattr(blank, "transformer", blank).h[1].mlp.c_fc.weight, wanted.h[1].mlp.c_fc.weight)


LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MIXTURE = {**LAYERS, "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": None}
RENAMING = {
    "mixtral": ("AutoModelForCausalLM", {**MIXTURE, "num_local_experts": 12}),
    "qwen3_moe": ("AutoModelForCausalLM", {**MIXTURE, "num_experts": 4, "moe_intermediate_size": 16}),
    "vit": ("AutoModelForImageClassification", LAYERS),
}


@pytest.mark.parametrize("kind", RENAMING)
def test_what_transformers_renames_and_joins_is_read_as_from_pretrained_reads_it(kind: str, tmp_path: Path) -> None:
    auto, options = RENAMING[kind]
    config = transformers.AutoConfig.for_model(kind, **options)
    torch.manual_seed(1)
    saved = getattr(transformers, auto).from_config(config)
    saved.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto).from_pretrained(tmp_path)
    blank, first = record(lambda: getattr(transformers, auto).from_config(config), 2)
    source = pretrained(tmp_path, blank, first)
    assert source.unused == ()
    # The file's names are not the model's: else this tests nothing.
    assert set(SafetensorsSource(tmp_path).names()) != set(saved.state_dict())
    materialise(blank, source)
    for name, tensor in named_tensors(loaded).items():
        assert torch.equal(named_tensors(blank)[name], tensor), name
        assert torch.equal(tensor, named_tensors(saved)[name]), name


def test_only_the_slice_is_read_and_every_dtype_survives(tmp_path: Path) -> None:
    kinds = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
    tensors = {str(kind): (torch.arange(60).reshape(3, 4, 5) % 7).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)}
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, file)
    source = SafetensorsSource(file)
    for name, tensor in tensors.items():
        assert (source.shape(name), source.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(source.read(name), tensor)
    assert torch.equal(source.read("torch.bfloat16", (slice(1, 3), slice(0, 2))), tensors["torch.bfloat16"][1:3, 0:2])
    source.read("torch.float32").zero_()
    source.close()
    assert torch.equal(SafetensorsSource(file).read("torch.float32"), tensors["torch.float32"])


def test_what_is_missing_is_named_with_what_is_similar(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in make().state_dict().items() if name != "head.weight"}
    state["blocks.0.ln.weight"] = state.pop("blocks.0.norm.weight")
    state["blocks.1.up.bias"] = torch.zeros(3)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    blank, first = record(make, 2)
    with pytest.raises(WeightsMismatch) as error:
        pretrained(tmp_path, blank, first)
    assert "blocks.0.norm.weight is missing (there is blocks.0.ln.weight)" in error.value.problems
    assert "blocks.1.up.bias has the shape (3,) there and (48,) in the model" in error.value.problems
    assert len(error.value.problems) == 2


def test_new_parameters_start_fresh_only_where_that_was_said(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = {name: tensor.clone() for name, tensor in make().state_dict().items() if not name.startswith("head")}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    blank, first = record(lambda: Model(tied=False), 2)
    with pytest.raises(WeightsMismatch, match=r"head\.weight is missing"):
        pretrained(tmp_path, blank, first)
    source = pretrained(tmp_path, blank, first, new=["head.*"])
    assert source.fresh == ("head.weight", "table")
    materialise(blank, source)
    torch.manual_seed(2)
    assert torch.equal(blank.head.weight, Model(tied=False).head.weight)
    assert torch.equal(blank.embed.weight, state["embed.weight"])


def test_norms_of_old_files_are_found(tmp_path: Path) -> None:
    state = {"gamma": torch.full((8,), 2.0), "beta": torch.full((8,), 3.0)}
    safetensors.torch.save_file({f"0.{name}": tensor for name, tensor in state.items()}, tmp_path / "m.safetensors")
    model = nn.Sequential(nn.LayerNorm(8))
    materialise(model, pretrained(tmp_path, model))
    assert torch.equal(model[0].weight, state["gamma"])


def test_pickles_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(WeightsRefused, match=r"may be a pickle.*save_pretrained"):
            SafetensorsSource(path)


def test_what_is_no_whole_file_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    safetensors.torch.save_file({"a": torch.ones(4)}, good)
    data = good.read_bytes()
    bad = tmp_path / "bad"
    bad.mkdir()

    def refused(content: bytes, match: str) -> None:
        (bad / "model.safetensors").write_bytes(content)
        with pytest.raises(WeightsRefused, match=match):
            SafetensorsSource(bad)

    refused(data[:-4], "no whole data")
    refused(b"", "header does not fit")
    refused((2**60).to_bytes(8, "little") + data[8:], "header does not fit")
    refused(data[:8] + b"x" + data[9:], "cannot be read")
    header = b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}'
    refused(len(header).to_bytes(8, "little") + header + b"12345678", "C64")
    with pytest.raises(WeightsRefused, match="does not exist"):
        SafetensorsSource(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(WeightsRefused, match=r"no \.safetensors file"):
        SafetensorsSource(tmp_path / "none")


def test_an_index_is_not_trusted(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(4)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, match in (
        ({"a": "../one.safetensors"}, "no .safetensors file beside it"),
        ({"a": "two.safetensors"}, "lacks two.safetensors"),
        ({"b": "one.safetensors"}, "which does not have it"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(WeightsRefused, match=match):
            SafetensorsSource(tmp_path)
    index.write_text("[]")
    with pytest.raises(WeightsRefused, match="cannot be read"):
        SafetensorsSource(tmp_path)
    index.unlink()
    safetensors.torch.save_file({"a": torch.ones(4)}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsRefused, match=r"2 \.safetensors files"):
        SafetensorsSource(tmp_path)
