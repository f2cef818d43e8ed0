"""What cannot be cut is refused before anything runs, naming the module and the cause."""

from typing import Any

import pytest
import torch
from torch import nn

from distroml.planner import Plan
from distroml.runtime.parallel.pipeline import NoCut, Pipeline, check_microbatches

WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, beside: torch.Tensor | None = None) -> Any:
        y = x + torch.tanh(self.linear(x))
        return y if beside is None else y + beside


class Model(nn.Module):
    """Four blocks; subclasses say how they are run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.chain(self.first(x)))

    def chain(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Twice(Model):
    def chain(self, x: torch.Tensor) -> torch.Tensor:
        return super().chain(super().chain(x))


class Backward(Model):
    def chain(self, x: torch.Tensor) -> torch.Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Half(Model):
    def chain(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks[:2]:
            x = block(x)
        return x


class AroundTheChain(Model):
    def chain(self, x: torch.Tensor) -> torch.Tensor:
        return super().chain(x) + x


class Hidden(Model):
    """What is made before the chain reaches a later block by an attribute."""

    def chain(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x * 2
        for number, block in enumerate(self.blocks):
            x = block(x) + (scaled if number == 3 else 0)
        return x


class Detached(Model):
    """A statistic of the first block moves the last one, without a gradient."""

    def chain(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](x)
        level = x.detach().mean()
        for block in self.blocks[1:]:
            x = block(x)
        return x * level


class Message:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, message: Message) -> Message:
        return Message(self.block(message.x))


class Objects(Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Wrapped() for _ in range(4))

    def chain(self, x: torch.Tensor) -> torch.Tensor:
        message = Message(x)
        for block in self.blocks:
            message = block(message)
        return message.x


class Deciding(Model):
    def chain(self, x: torch.Tensor) -> torch.Tensor:
        return super().chain(x) if float(self.first(x).sum()) > 0 else x


class Beside(Model):
    """Handed to every block as an argument, so that it can be followed."""

    def chain(self, x: torch.Tensor) -> torch.Tensor:
        start = x
        for block in self.blocks:
            x = block(x, start)
        return x


class Tied(Model):
    """One block's weight is another's, two stages further on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[3].linear.weight = self.blocks[0].linear.weight


def loss(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    return model(batch).sum(), len(batch)


def cut(kind: type[Model], stages: tuple[int, ...] = (2, 2)) -> Pipeline:
    model = kind()
    blocks = [f"blocks.{number}" for number in range(4)]
    return Pipeline(model, loss, torch.randn(3, WIDTH), blocks=blocks, plan=Plan(pp=2, stages=stages), coordinate=1)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (Twice, r"block blocks\.0 runs twice in one forward pass"),
        (Backward, r"block blocks\.3 runs before block blocks\.0"),
        (Half, r"block blocks\.2 does not run"),
        (AroundTheChain, r"before the cut before block blocks\.2 is used by code outside of the blocks"),
        (Hidden, r"MulBackward0 before the cut before block blocks\.2 is used by code outside .* cannot be followed"),
        (Detached, r"differs between the cut and the whole model by"),
        (Objects, r"block blocks\.0 returns a Message at .*, which cannot be followed"),
        (Deciding, r"one pass over the sample fails without weights: DataDependentOutputException"),
    ],
)
def test_refused_with_the_cause(kind: type[Model], cause: str) -> None:
    with pytest.raises(NoCut, match=cause):
        cut(kind)


def test_another_chain_than_the_plan_s_is_refused() -> None:
    with pytest.raises(NoCut, match=r"hold 3 blocks, the model's chain has 4"):
        cut(Model, (1, 2))


def test_a_value_that_every_block_is_handed_crosses_beside_the_chain() -> None:
    pipeline = cut(Beside)
    (flow,) = pipeline._flows.values()
    assert [len(stage.receives) for stage in flow.stages] == [0, 2]
    assert pipeline.proved


def test_a_shared_block_weight_is_held_by_both_stages() -> None:
    pipeline = cut(Tied)
    assert pipeline.tied == {"blocks.0.linear.weight": (0, 1)}
    assert pipeline.owner["blocks.0.linear.weight"] == 0
    assert sorted(pipeline.names) == [
        "blocks.0.linear.weight",
        "blocks.2.linear.bias",
        "blocks.2.linear.weight",
        "blocks.3.linear.bias",
        "last.bias",
        "last.weight",
    ]


def test_other_stages_parameters_take_no_memory() -> None:
    (stage,) = cut(Model).modules
    foreign = stage.model.blocks[0].linear.weight
    assert foreign.shape == (WIDTH, WIDTH)
    assert foreign.untyped_storage().nbytes() == foreign.element_size()
    assert list(stage.model.blocks[0].parameters()) == []


def test_batches_of_two_shapes_in_one_step_are_refused() -> None:
    pipeline = cut(Model)
    with pytest.raises(ValueError, match=r"microbatch 1 of this step has another shape than microbatch 0"):
        pipeline.forward_backward([torch.randn(3, WIDTH), torch.randn(2, WIDTH)])
    with pytest.raises(RuntimeError, match="call bind"):
        pipeline.forward_backward([torch.randn(3, WIDTH)])


def test_a_step_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one microbatch"):
        cut(Model).forward_backward([])


@pytest.mark.parametrize(("pp", "microbatches", "fits"), [(2, 4, True), (2, 5, False), (4, 3, True), (4, 9, False)])
def test_microbatches_of_interleaved_schedules(pp: int, microbatches: int, fits: bool) -> None:
    check_microbatches("1f1b", pp, microbatches)
    if fits:
        check_microbatches("interleaved", pp, microbatches)
        return
    with pytest.raises(ValueError, match=rf"cannot order {microbatches} microbatches .*; {microbatches - 1} or"):
        check_microbatches("zero_bubble", pp, microbatches)
