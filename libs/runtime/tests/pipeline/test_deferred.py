"""Weights' gradients that come later are the same gradients."""

import torch
from torch import nn

from distroml.runtime.parallel.pipeline.deferred import Deferred


def test_the_weight_s_gradient_comes_when_it_is_paid() -> None:
    layer, plain = nn.Linear(3, 5).double(), nn.Linear(3, 5).double()
    plain.load_state_dict(layer.state_dict())
    deferred = Deferred()
    deferred.attach(nn.Sequential(layer))
    seen: list[torch.Tensor] = []
    layer.weight.register_post_accumulate_grad_hook(seen.append)
    inputs = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    layer(inputs).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    pay = deferred.take()
    deferred.take()()
    assert layer.weight.grad is None
    pay()
    assert len(seen) == 1
    ours = inputs.grad
    inputs.grad = None
    plain(inputs).square().sum().backward()
    torch.testing.assert_close(ours, inputs.grad)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


def test_a_weight_that_the_forward_pass_only_shows_gets_its_gradient_where_it_came_from() -> None:
    """As tensor parallelism does: during the forward pass the attribute is a part of the parameter."""
    whole = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    layer = nn.Linear(3, 3, bias=False).double()
    deferred = Deferred()
    deferred.attach(nn.Sequential(layer))
    inputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    object.__setattr__(layer, "weight", whole[:3])
    output = layer(inputs)
    object.__delattr__(layer, "weight")
    output.sum().backward()
    assert whole.grad is None
    deferred.take()()
    expected = torch.zeros(6, 3, dtype=torch.float64)
    expected[:3] = inputs.detach().sum(0)
    torch.testing.assert_close(whole.grad, expected)
    assert layer.weight.grad is None


def test_frozen_weights_and_inputs_without_gradients_are_left_to_autograd() -> None:
    layer, frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    deferred = Deferred()
    deferred.attach(nn.Sequential(layer, frozen))
    frozen(layer(torch.randn(2, 3))).sum().backward()
    assert layer.weight.grad is not None
    assert frozen.weight.grad is None
