"""A lean copy computes like the whole model with one block's weights."""

import torch

from distroml.runtime.parallel.lean import lean_copy
from distroml.runtime.parallel.weights import record
from distroml.runtime.profile import profile
from libs.runtime.tests.profile.memory_ranks import Tower, batch, loss


def test_blocks_of_one_shape_share_the_first_ones_weights():
    blank, weights = record(Tower, 3)
    lean = lean_copy(blank, profile(blank, loss, batch()), weights, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in blank.parameters())
    torch.manual_seed(3)
    whole = Tower()
    outside = sum(parameter.numel() for one in (whole.first, whole.last) for parameter in one.parameters())
    block = sum(parameter.numel() for parameter in whole.blocks[0].parameters())
    assert sum(parameter.numel() for parameter in lean.parameters()) == outside + block
    for name in ("first.weight", "last.weight", "blocks.0.up.weight"):
        assert torch.equal(lean.get_parameter(name), whole.get_parameter(name))
    for other in whole.blocks[1:]:
        other.load_state_dict(whole.blocks[0].state_dict())
    total, right = (loss(one, batch())[0] for one in (lean, whole))
    assert torch.equal(total, right)
    total.backward()
    assert all(parameter.grad is not None for parameter in lean.parameters())
