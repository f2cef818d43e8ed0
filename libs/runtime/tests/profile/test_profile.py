"""A profile equals what is counted by hand, and what a real run on the CPU saves and computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distroml.runtime.profile import ProfileRefused, profile
from libs.runtime.tests.parallel.models import LENGTH, ROWS, Quirks, loss, make, samples
from libs.runtime.tests.tensor import zoo

WIDTH, SAMPLES, TOKENS = 16, 3, 6
FLOAT = 4


def total(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    return model(batch).sum(), batch.shape[0]


class Chain(nn.Module):
    """A chain of given blocks behind one linear layer, so that blocks want a gradient of their inputs."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            one(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for one in (self.query, self.key, self.value)
        )
        seen = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        return x + self.out(seen.transpose(1, 2).flatten(2))


# Of one sample. An activation of the block's width, in elements and in bytes.
ROW = TOKENS * WIDTH
BYTES = ROW * FLOAT
SCORES = 4 * TOKENS * TOKENS
PRODUCT = 2 * ROW * WIDTH
HAND: dict[str, tuple[Callable[[], nn.Module], int, float, float]] = {
    # parameters, FLOPs forward, bytes saved: inputs of products, and results of what follows them
    "linear": (lambda: nn.Linear(WIDTH, WIDTH), WIDTH * WIDTH + WIDTH, PRODUCT, BYTES),
    # the input, and relu's result, which is also what the second product needs
    "mlp": (Mlp, 8 * WIDTH * WIDTH + 5 * WIDTH, 8 * PRODUCT, 5 * BYTES),
    # the input once for three products; queries, keys and values as products need them; softmax; the last one's input
    "attention": (
        Attention,
        4 * WIDTH * WIDTH,
        4 * PRODUCT + 2 * 2 * SCORES * WIDTH // 4,
        5 * BYTES + SCORES * FLOAT,
    ),
}


@pytest.mark.parametrize("name", HAND)
def test_a_block_costs_what_is_counted_by_hand(name: str) -> None:
    block, parameters, flops, saved = HAND[name]
    found = profile(Chain(block), total, torch.randn(SAMPLES, TOKENS, WIDTH))
    assert [unit.name for unit in found.units] == ["before", "blocks.0", "blocks.1", "blocks.2", "after"]
    for unit in found.blocks:
        assert unit.parameters == parameters
        assert unit.forward.flops == flops
        assert unit.backward.flops == 2 * flops
        none = unit.saved["none"]
        assert none.whole_bytes + none.split_bytes == saved
        assert unit.saved["full"].whole_bytes == BYTES
        assert unit.output_bytes == BYTES
    assert found.units[0].parameters == WIDTH * WIDTH + WIDTH
    # What goes into the model wants no gradient: there is one product less.
    assert found.units[0].backward.flops == found.units[0].forward.flops == PRODUCT
    assert found.parameter_itemsize == FLOAT


def real(model: nn.Module, run: Callable[[], torch.Tensor]) -> tuple[float, float, float]:
    """FLOPs forward and in all, and bytes saved beside parameters and buffers, of a real run."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, tuple[Any, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    with FlopCounterMode(display=False) as flops:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            one = run()
        forward = flops.get_total_flops()
        one.backward()
    return forward, flops.get_total_flops(), sum(size for _, size in saved.values())


@pytest.mark.parametrize("name", ["example_gpt", "llama", "gpt2", "bert", "t5", "bart", "vit"])
def test_a_profile_is_what_a_real_run_takes(name: str) -> None:
    architecture = zoo.BY_NAME[name]
    torch.manual_seed(0)
    model, batch = architecture.make(), architecture.batch(SAMPLES, seed=1)
    found = profile(model, zoo.loss, batch)
    forward, flops, saved = real(model, lambda: zoo.loss(model, batch)[0])
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert SAMPLES * sum(unit.forward.flops for unit in found.units) == pytest.approx(forward, rel=1e-12)
    assert SAMPLES * found.model_flops == pytest.approx(flops, rel=1e-12)
    kept = [unit.saved["none"] for unit in found.units]
    told = SAMPLES * sum(one.whole_bytes + one.split_bytes for one in kept)
    assert told == pytest.approx(saved, rel=0.01)
    for unit in found.blocks:
        none, selective, full = (
            unit.saved[kind].whole_bytes + unit.saved[kind].split_bytes for kind in ("none", "selective", "full")
        )
        assert full < selective <= none
        assert 0 < unit.split <= 1
    assert found.tokens == zoo.loss(model, batch)[1] // SAMPLES


@pytest.mark.parametrize(("name", "heads"), [("llama", {"heads": 4, "kv_heads": 2}), ("t5", {"heads": 4})])
def test_heads_limit_tensor_parallelism(name: str, heads: dict[str, int]) -> None:
    architecture = zoo.BY_NAME[name]
    found = profile(architecture.make(), zoo.loss, architecture.batch(2, seed=1))
    assert found.no_tp == ""
    assert {key: found.tp_limits.get(key) for key in heads} == heads


def test_no_weights_are_needed_and_nothing_is_changed() -> None:
    architecture = zoo.BY_NAME["llama"]
    model, batch = architecture.make(), architecture.batch(2, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    right = profile(model, zoo.loss, batch)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.device("meta"):
        hollow = architecture.make()
    assert profile(hollow, zoo.loss, batch) == right


def test_tied_and_frozen_parameters() -> None:
    model = make(Quirks(tied=True, unused=True))
    found = profile(model, loss, samples(2, 1))
    assert found.tied == ((0, 5),)
    assert found.tied_parameters == (ROWS * 6,)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.parameter_itemsize == 8
    frozen = profile(make(Quirks(frozen=True)), loss, samples(2, 1))
    before, first, second, *_ = frozen.units
    assert (before.parameters, before.frozen_parameters) == (0, ROWS * 6)
    assert first.parameters == 0
    assert first.frozen_parameters == second.parameters
    # Nothing before the second block has a gradient: it saves nothing, and has no backward pass.
    assert before.backward.flops == first.backward.flops == 0
    assert first.saved["none"].whole_bytes + first.saved["none"].split_bytes == 0
    assert second.backward.flops > second.forward.flops


def test_costs_are_of_one_sample() -> None:
    few, many = (profile(make(Quirks()), loss, samples(count, 1)) for count in (2, 6))
    assert few.parameters == many.parameters
    for one, other in zip(few.units, many.units, strict=True):
        assert one.forward.flops == other.forward.flops
        assert one.backward.flops == other.backward.flops
        if one.kind == "block":
            assert one.saved == other.saved
            assert one.output_bytes == LENGTH * 6 * 8


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(torch.relu(self.one(x)))


def test_a_model_without_blocks_is_one_unit_and_says_why() -> None:
    found = profile(Flat(), total, torch.randn(SAMPLES, WIDTH))
    assert len(found.units) == 1
    assert found.model_flops == 2 * (WIDTH * 8 * 2 + 8 * 3)
    assert "no repeated blocks" in found.no_pp
    assert "no chain of blocks" in found.no_tp


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.randn(SAMPLES, WIDTH + 1), "the loss cannot be run on the sample"),
        ({"name": "text"}, "no tensor whose first dimension counts samples"),
        (torch.tensor(1.0), "no tensor whose first dimension counts samples"),
    ],
)
def test_a_sample_that_cannot_be_run_is_refused(batch: Any, said: str) -> None:
    with pytest.raises(ProfileRefused, match=said):
        profile(Chain(Mlp), total, batch)
