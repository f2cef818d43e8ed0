"""What is split, what is not and why: one process, no process group."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from distroml.runtime.checkpoint.layout import Rows
from distroml.runtime.parallel.tensor import (
    Layout,
    NoTensorPlan,
    Split,
    TensorPlan,
    apply_tensor_plan,
    choose_tensor_plan,
)
from distroml.runtime.parallel.tensor.apply import hook_modules
from distroml.runtime.parallel.tensor.capture import capture
from distroml.runtime.parallel.tensor.parts import OwnPart, OwnPartUsed, divided
from distroml.runtime.parallel.tensor.proof import NotEqual, Prover
from distroml.runtime.parallel.tensor.simulate import LoneRank
from distroml.runtime.profile import find_chain
from libs.runtime.tests.tensor.zoo import BY_NAME, example, hugging_face, loss, made


def plan_of(name: str, degree: int = 2) -> TensorPlan:
    return plan_for(made(name), name, degree)


def plan_for(model: nn.Module, name: str, degree: int = 2) -> TensorPlan:
    sample = BY_NAME[name].batch(2, seed=1)
    return choose_tensor_plan(model, find_chain(model, lambda one: loss(one, sample)).blocks, loss, sample, degree)


def prover_of(name: str) -> Prover:
    sample = BY_NAME[name].batch(2, seed=1)
    return Prover(capture(made(name), find_chain(made(name), lambda one: loss(one, sample)).blocks, loss, sample)[0])


def split_alone(model: nn.Module, plan: TensorPlan) -> nn.Module:
    """Rank 0's part, which sums with nobody."""
    for path, split in plan.modules.items():
        for name, layout in split.parameters.items():
            module = model.get_submodule(path)
            whole = module.get_parameter(name).detach()
            setattr(module, name, nn.Parameter(layout.take(whole, 0, plan.degree).clone()))
    hook_modules(model, plan.modules, plan.blocks, LoneRank(plan.degree), random=plan.random)
    return model


# ---- layouts


@given(st.data())
def test_parts_put_together_are_the_whole(data: st.DataObject) -> None:
    degree = data.draw(st.integers(1, 4))
    segments = tuple(degree * size for size in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    dim = data.draw(st.integers(0, 1))
    shape = [3, 3]
    shape[dim] = sum(segments)
    whole = torch.arange(math.prod(shape)).view(shape)
    layout = Layout(dim, segments)
    parts = [layout.take(whole, rank, degree) for rank in range(degree)]
    assert all(part.shape[dim] == layout.size(degree) for part in parts)
    assert torch.equal(layout.restore(torch.cat(parts, dim), degree), whole)


def test_rows_say_where_a_fused_projection_lies() -> None:
    plan = plan_of("example_gpt")
    assert plan.rows == {
        f"blocks.{block}.qkv.weight": Rows(0, ((0, 16), (32, 48), (64, 80), (16, 32), (48, 64), (80, 96)))
        for block in range(2)
    }


# ---- what is split


def test_the_example() -> None:
    plan = plan_of("example_gpt", 4)
    assert set(plan.modules) == {
        f"blocks.{block}.{name}" for block in range(2) for name in ("qkv", "out", "up", "down")
    }
    assert plan.modules["blocks.0.qkv"].parameters["weight"] == Layout(0, (32, 32, 32))
    assert plan.modules["blocks.1.down"].parameters["weight"] == Layout(1, (128,))
    assert plan.limits == {"heads": 4, "split width": 32}
    assert not plan.whole
    assert not plan.random
    assert not plan.summed


def test_sizes_that_come_from_the_input_are_mended() -> None:
    plan = plan_of("careless", 4)
    assert not plan.whole
    qkv = plan.modules["blocks.0.qkv"]
    assert (qkv.mend, qkv.parameters["weight"]) == ("first", Layout(0, (32, 32, 32)))


def test_the_models_own_plan_comes_first() -> None:
    plan = plan_of("llama")
    assert {split.source for split in plan.modules.values()} == {"model"}
    assert {split.source for split in plan_of("gpt2").modules.values() if split.style != "inside"} == {"structure"}


def test_counts_in_a_configuration_are_divided_for_one_module_only() -> None:
    model = made("phi3")
    before = model.config.num_attention_heads
    plan = plan_for(model, "phi3")
    assert plan.modules["model.layers.0.self_attn"].attributes == {
        "config.num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    assert plan.modules["model.layers.0.self_attn.qkv_proj"].parameters["weight"] == Layout(0, (32, 16, 16))
    assert model.config.num_attention_heads == before


def test_norms_of_single_heads_have_partial_gradients() -> None:
    assert plan_of("qwen3").summed == {
        f"model.layers.{layer}.self_attn.{name}_norm.weight" for layer in range(4) for name in "qk"
    }


def test_experts_are_split_inside() -> None:
    plan = plan_of("mixtral")
    experts = plan.modules["model.layers.0.mlp.experts"]
    assert experts.style == "experts"
    assert experts.parameters == {"gate_up_proj": Layout(1, (64, 64)), "down_proj": Layout(2, (64,))}
    assert "model.layers.0.mlp.gate" not in plan.modules


def test_attention_that_cannot_be_split_stays_whole() -> None:
    """A norm over all heads together needs all of them; the feed-forward part is split all the same."""
    plan = plan_of("olmo2")
    assert set(plan.whole) == {f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(4) for name in "qkvo"}
    assert "an output differs" in plan.whole["model.layers.0.self_attn.q_proj"]
    assert set(plan.modules) == {
        f"model.layers.{layer}.mlp.{name}_proj" for layer in range(4) for name in ("gate", "up", "down")
    }


def test_no_weights_are_needed() -> None:
    with torch.device("meta"):
        model = BY_NAME["llama"].make()
    plan = plan_for(model, "llama")
    assert plan.modules == plan_of("llama").modules
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.timeout(60)
def test_a_large_block_is_proved_on_few_tokens_without_its_memory() -> None:
    """A block of 61 million parameters, of which none is allocated."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4}
    with torch.device("meta"):
        model = hugging_face("LlamaForCausalLM", vocab_size=64, num_hidden_layers=3, **sizes)()
    tokens = torch.randint(0, 64, (4, 512))
    paths = [f"model.layers.{layer}" for layer in range(3)]
    plan = choose_tensor_plan(model, paths, lambda one, batch: (one(input_ids=batch).logits.sum(), 1), tokens, 2)
    assert len(plan.modules) == 21
    assert not plan.whole


def test_the_model_is_left_as_it_was() -> None:
    model = made("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    plan_for(model, "gpt2")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.transformer.h[0].attn.split_size == 32


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "degree", "message"),
    [
        ("llama", 4, r"model\.layers\.0: num_key_value_heads 2 is not divisible by tp 4: nearest tp: 2$"),
        ("example_gpt", 3, r"blocks\.0: heads 4 is not divisible by tp 3: nearest tp: 2, 4$"),
        ("convnext", 3, r"no block can be split by tp 3 \(.*pwconv1.*not divisible\): use tp=1$"),
    ],
)
def test_refusals_say_why_and_what_works(name: str, degree: int, message: str) -> None:
    with pytest.raises(NoTensorPlan, match=message):
        plan_of(name, degree)


def test_no_chain_no_plan() -> None:
    with pytest.raises(NoTensorPlan, match="there is none"):
        choose_tensor_plan(nn.Linear(2, 2), (), loss, None, 2)


def test_a_sample_that_cannot_be_run_is_named() -> None:
    with pytest.raises(NoTensorPlan, match=r"the sample does not lead through the blocks: .*'wrong'"):
        choose_tensor_plan(made("llama"), ["model.layers.0"], lambda model, batch: batch["wrong"], {}, 2)


def test_blocks_without_linears_that_feed_one_another() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sample = torch.randn(2, 4)
    with pytest.raises(NoTensorPlan, match=r"no linear layer feeds another inside of a block"):
        choose_tensor_plan(model, ["0", "1"], lambda one, batch: (one(batch).sum(), 1), sample, 2)


# ---- the proof sees what is wrong


def test_heads_dealt_out_in_the_wrong_order_are_seen() -> None:
    right = {
        path.removeprefix("blocks.0."): split for path, split in plan_of("example_gpt").modules.items() if "s.0" in path
    }
    prover = prover_of("example_gpt")
    assert prover.prove(right, 2) == right
    wrong = {**right, "qkv": Split(style="column", parameters={"weight": Layout(0, (96,))}, region="out")}
    with pytest.raises(NotEqual, match="an output differs"):
        prover.prove(wrong, 2)


def test_a_sum_that_is_left_out_is_seen() -> None:
    right = {
        path.removeprefix("blocks.0."): split for path, split in plan_of("example_gpt").modules.items() if "s.0" in path
    }
    inside = {**right, "down": Split(style="inside", parameters=right["down"].parameters)}
    with pytest.raises(NotEqual, match="an output differs"):
        prover_of("example_gpt").prove(inside, 2)


def test_an_input_whose_gradient_is_not_summed_is_seen() -> None:
    right = {
        path.removeprefix("blocks.0."): split for path, split in plan_of("example_gpt").modules.items() if "s.0" in path
    }
    inside = {**right, "up": Split(style="inside", parameters=right["up"].parameters)}
    with pytest.raises(NotEqual, match="the gradient of an input differs"):
        prover_of("example_gpt").prove(inside, 2)


# ---- what is carried out


def test_a_split_block_compiles_to_one_graph() -> None:
    model = made("gpt2")
    part = split_alone(model, plan_for(model, "gpt2"))
    block = part.get_submodule("transformer.h.0")
    hidden = torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(block.forward, backend="eager", fullgraph=True)
    assert torch.equal(compiled(hidden), block(hidden))
    assert "weight" not in vars(block.attn.c_attn), "nothing is left that hides the parameter"


# ---- activations that mend


@pytest.mark.parametrize(
    ("have", "want", "mend", "made"),
    [
        ((2, 5, 48), (2, 5, 3, 4, 8), "first", (2, 5, 3, 2, 8)),
        ((2, 5, 48), (2, 5, 3, 4, 8), "last", (2, 5, 3, 4, 4)),
        ((2, 5, 2, 8), (2, 5, 32), "first", (2, 5, 16)),
        ((2, 5, 16), (2, 5, 2, 8), "first", (2, 5, 2, 8)),  # fits as it is
        ((2, 5, 16), (2, 5, -1, 8), "first", (2, 5, -1, 8)),  # finds its size itself
        ((3, 15), (3, 10, 3), "first", (3, 5, 3)),
        ((2, 9), (2, 3, 9), "first", (2, 3, 9)),  # three times too many is no mistake of two ranks
    ],
)
def test_one_entry_of_a_shape_is_divided(
    have: tuple[int, ...], want: tuple[int, ...], mend: str, made: tuple[int, ...]
) -> None:
    assert divided(have, want, 2, "last" if mend == "last" else "first") == made


def test_computing_with_the_heads_of_one_rank_is_an_error() -> None:
    weights = torch.rand(2, 2, 5, 5).as_subclass(OwnPart)
    kept = (weights, weights.shape, weights.detach())
    assert kept[1] == (2, 2, 5, 5)
    with pytest.raises(OwnPartUsed, match=r"sum of a tensor of shape \(2, 2, 5, 5\) .* use tp=1"):
        weights.sum()


def test_a_plan_is_for_one_size_of_mesh() -> None:
    class Mesh:
        ndim, shape = 1, (4,)

        def size(self) -> int:
            return 4

    with pytest.raises(ValueError, match=r"splits over 2 ranks, the mesh has shape \(4,\)"):
        apply_tensor_plan(example().GPT(example().ModelConfig()), plan_of("example_gpt"), Mesh())  # type: ignore[arg-type]
