"""Torch's own optimizers step split and whole parameters of one group, as one parameter after the other would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import SGD, AdamW, Optimizer

from distroml.runtime.parallel.tensor.stepping import step_by_kind

Make = Callable[[list[nn.Parameter]], Optimizer]


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    step_by_kind()
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _parameters(mesh: DeviceMesh) -> list[nn.Parameter]:
    """A whole one between two split ones."""
    torch.manual_seed(3)
    made = [torch.randn(4, 3), torch.randn(4), torch.randn(3, 4)]
    return [nn.Parameter(DTensor.from_local(value, mesh, [Shard(0)]) if value.ndim > 1 else value) for value in made]


def _train(parameters: list[nn.Parameter], optimizer: Optimizer, steps: int = 3) -> list[torch.Tensor]:
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
        optimizer.step()
    values = [parameter.detach() for parameter in parameters]
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


@pytest.mark.parametrize(
    ("together", "apart"),
    [
        (lambda p: AdamW(p, lr=0.1, foreach=True), lambda p: AdamW(p, lr=0.1, foreach=False)),
        (lambda p: AdamW(p, lr=0.1, fused=True), lambda p: AdamW(p, lr=0.1, foreach=False)),
        (
            lambda p: SGD(p, lr=0.1, momentum=0.9, foreach=True),
            lambda p: SGD(p, lr=0.1, momentum=0.9, foreach=False),
        ),
    ],
    ids=["foreach AdamW", "fused AdamW", "foreach SGD"],
)
def test_both_kinds_are_stepped(mesh: DeviceMesh, together: Make, apart: Make) -> None:
    ours, theirs = _parameters(mesh), _parameters(mesh)
    optimizer = together(ours)
    group = optimizer.param_groups[0]
    for mine, other in zip(_train(ours, optimizer), _train(theirs, apart(theirs)), strict=True):
        torch.testing.assert_close(mine, other)
    assert optimizer.param_groups == [group]
    assert optimizer.param_groups[0] is group
    assert [id(one) for one in group["params"]] == [id(one) for one in ours]
    assert len(optimizer.state) == len(ours)


def test_a_scheduler_sees_its_own_groups(mesh: DeviceMesh) -> None:
    parameters = _parameters(mesh)
    optimizer = AdamW([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.5}], lr=0.1, foreach=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    _train(parameters, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.25]
    _train(parameters, optimizer, 1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]


def test_what_a_step_writes_into_its_group_stays(mesh: DeviceMesh) -> None:
    class Counting(SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1
            return super().step(closure)

    parameters = _parameters(mesh)
    optimizer = Counting(parameters, lr=0.1, foreach=True)
    _train(parameters, optimizer, 3)
    assert [group["steps"] for group in optimizer.param_groups] == [3]


def test_a_step_that_raised_leaves_no_parts(mesh: DeviceMesh) -> None:
    class Failing(SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise ArithmeticError("no")
            return super().step(closure)

    parameters = _parameters(mesh)
    optimizer = Failing(parameters, lr=0.1, foreach=True)
    group = optimizer.param_groups[0]
    with pytest.raises(ArithmeticError):
        _train(parameters, optimizer, 1)
    optimizer.fails = False
    _train(parameters, optimizer, 1)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] is group
