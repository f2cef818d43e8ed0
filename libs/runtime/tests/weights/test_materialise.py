"""Every rank's part of a model filled by slices equals the model of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distroml.runtime.parallel.weights import LiveSource, WeightsMismatch, materialise, named_tensors, record
from libs.runtime.tests.weights.models import Model, make
from libs.runtime.tests.weights.ranks import run

CASES = "libs.runtime.tests.weights.placing"


@pytest.mark.parametrize(("world_size", "case"), [(2, "two"), (4, "four")])
def test_ranks_hold_the_slices_of_one_process(world_size: int, case: str, tmp_path: Path) -> None:
    run(world_size, f"{CASES}:{case}", tmp_path)


def test_a_plain_module_is_filled_and_its_ties_and_attributes_stay() -> None:
    model, source = record(make, 3, small_bytes=64)
    model.embed.weight.kind = "embedding"
    materialise(model, source)
    torch.manual_seed(3)
    for name, tensor in named_tensors(make()).items():
        assert torch.equal(named_tensors(model)[name], tensor), name
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.kind == "embedding"
    assert model.original_table is model.table


def test_recurrent_modules_run_after_it() -> None:
    def factory() -> nn.Module:
        return nn.LSTM(8, 8, 2)

    model, source = record(factory, 3, small_bytes=0)
    materialise(model, source)
    torch.manual_seed(3)
    inputs = torch.ones(3, 2, 8)
    assert torch.equal(model(inputs)[0], factory()(inputs)[0])


def test_placeholders_of_other_stages_are_left_alone() -> None:
    model, source = record(make, 3)
    for name, parameter in list(model.blocks[2].up.named_parameters()):
        delattr(model.blocks[2].up, name)
        setattr(model.blocks[2].up, name, torch.zeros(()).expand(parameter.shape))
    materialise(model, source)
    assert model.blocks[2].up.weight.stride() == (0, 0)
    assert float(model.blocks[2].up.weight.sum()) == 0


def test_what_does_not_fit_is_named_and_nothing_is_filled() -> None:
    model, _ = record(make, 3)
    with pytest.raises(
        WeightsMismatch, match=r"blocks.4.norm.weight is missing.*embed.weight has the shape \(13, 16\)"
    ) as e:
        materialise(Model(blocks=5, words=14), LiveSource(make()))
    assert "blocks.4.down.bias is missing" in e.value.problems
    with pytest.raises(WeightsMismatch):
        materialise(model, LiveSource(Model(blocks=3)))
    assert all(tensor.is_meta for tensor in named_tensors(model).values())
