"""The chain of blocks is found where it is, and where there is none the reason names what was found instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distroml.runtime.profile import NoChain, find_chain
from libs.runtime.tests.tensor import zoo

WIDTH = 4
X = torch.randn(3, WIDTH)


class Block(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


class Other(Block):
    """Another class of block."""


class Listed(nn.Module):
    """Blocks in a list, run as subclasses say."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Reversed(Listed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Twice(Listed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


class Half(Listed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](x))


class InTurns(Listed):
    def __init__(self) -> None:
        super().__init__()
        self.others = nn.ModuleList(Other() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, other in zip(self.blocks, self.others, strict=True):
            x = other(one(x))
        return x


class WithHeads(Listed):
    """Two small projections beside the blocks are no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads[0](super().forward(x))


class Nested(nn.Module):
    """Lists within the blocks of a list are theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(x)


class Deciding(Listed):
    """Which way it takes depends on values, which weights without memory don't have: small models run for real."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x if float(x.sum()) > 0 else -x


class Alternating(nn.Module):
    """Two classes of blocks in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Other(), Block(), Other()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def blocks(model: nn.Module) -> tuple[str, ...]:
    return find_chain(model, lambda one: one(X)).blocks


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (Listed, [f"blocks.{number}" for number in range(4)]),
        (WithHeads, [f"blocks.{number}" for number in range(4)]),
        (Nested, ["outer.0", "outer.1"]),
        (Deciding, [f"blocks.{number}" for number in range(4)]),
        (Alternating, [f"blocks.{number}" for number in range(4)]),
        (lambda: nn.Sequential(*(Block() for _ in range(3))), ["0", "1", "2"]),
    ],
)
def test_found(kind: type[nn.Module], paths: list[str]) -> None:
    model = kind()
    assert list(blocks(model)) == paths
    assert find_chain(model, lambda one: one(X)).modules(model)[0] is model.get_submodule(paths[0])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Block, "no repeated blocks: no nn.ModuleList or nn.Sequential holds two or more modules of one class"),
        (Reversed, r"the blocks beside blocks\.0 do not run in their own order"),
        (Twice, r"block blocks\.0 runs more than once in one pass"),
        (Half, r"block blocks\.2 does not run"),
        (InTurns, r"blocks blocks\.0\.\.\. and others\.0\.\.\. run in turns"),
    ],
)
def test_refused(kind: type[nn.Module], said: str) -> None:
    with pytest.raises(NoChain, match=said):
        blocks(kind())


def test_a_pass_that_fails_is_named() -> None:
    with pytest.raises(NoChain, match=r"the forward pass cannot be followed \(RuntimeError: .*\[3, 5\] X \[4, 4\]"):
        find_chain(Listed(), lambda one: one(torch.randn(3, WIDTH + 1)))


def test_an_encoder_and_its_decoder_are_one_chain() -> None:
    architecture = zoo.BY_NAME["t5"]
    with torch.device("meta"):
        model = architecture.make()
    batch = architecture.batch(2, seed=1)
    assert find_chain(model, lambda one: zoo.loss(one, batch)).blocks == (
        "encoder.block.0",
        "encoder.block.1",
        "decoder.block.0",
        "decoder.block.1",
    )


def test_nothing_is_left_on_the_model() -> None:
    model = Listed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
