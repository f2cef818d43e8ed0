"""What the ranks of `test_materialise` do."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from distroml.runtime.checkpoint.layout import Rows
from distroml.runtime.parallel.weights import BuiltSource, materialise, named_tensors, pretrained, record
from libs.runtime.tests.weights.models import Model, make, make_untied

PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}


def reference(model_factory=make) -> Model:
    torch.manual_seed(7)
    return model_factory()


def check(module: torch.nn.Module, expected: Model) -> None:
    wanted = named_tensors(expected)
    found = named_tensors(module)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(whole.detach(), wanted[name].detach()), name
        assert tensor.requires_grad == wanted[name].requires_grad


def tokens() -> torch.Tensor:
    return torch.arange(12).reshape(3, 4)


def fsdp(rank: int, world_size: int) -> None:
    """Sharded over all ranks, 13 rows unevenly; the tied head stays tied and the forward pass is the same."""
    del rank
    model, source = record(make, 7, small_bytes=64)
    mesh = init_device_mesh("cpu", (world_size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    materialise(model, source)
    assert model.head.weight is model.embed.weight
    assert model.original_table is model.table
    expected = reference()
    check(model, expected)
    torch.testing.assert_close(model(tokens()), expected(tokens()), rtol=0, atol=0)
    check(model, expected)


def fsdp_after_to_empty(rank: int, world_size: int) -> None:
    """The same where memory is there already."""
    del rank
    model, source = record(make_untied, 7, small_bytes=64)
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    model.to_empty(device="cpu")
    materialise(model, source)
    check(model, reference(make_untied))
    torch.testing.assert_close(model(tokens()), reference(make_untied)(tokens()), rtol=0, atol=0)


def tensor_and_fsdp(rank: int, world_size: int) -> None:
    """Two by two: strided shards of shards."""
    del rank
    model, source = record(make, 7, small_bytes=64)
    mesh = init_device_mesh("cpu", (world_size // 2, 2), mesh_dim_names=("dp_shard", "tp"))
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], PLAN)
        fully_shard(block, mesh=mesh["dp_shard"])
    fully_shard(model, mesh=mesh["dp_shard"])
    materialise(model, source)
    expected = reference()
    check(model, expected)
    torch.testing.assert_close(model(tokens()), expected(tokens()), rtol=1e-5, atol=1e-6)


def tensor_with_rows(rank: int, world_size: int) -> None:
    """A fused projection [Q|K|V] dealt out so that each rank holds its rows of all three."""
    model, source = record(make, 7, small_bytes=64)
    mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("tp",))
    for block in model.blocks:
        parallelize_module(block, mesh, PLAN)
    dealt = Rows.dealt(0, (16, 16, 16), world_size)
    order = dealt.ranges
    layouts = {f"blocks.{i}.up.{kind}": dealt for i in range(4) for kind in ("weight", "bias")}
    layouts |= {f"blocks.{i}.down.weight": Rows(1, order) for i in range(4)}
    materialise(model, source, rows=layouts)
    expected = reference()
    mine = [index for start, stop in order[3 * rank : 3 * rank + 3] for index in range(start, stop)]
    for i, block in enumerate(expected.blocks):
        up, down = model.blocks[i].up, model.blocks[i].down
        assert torch.equal(up.weight.to_local(), block.up.weight[mine])
        assert torch.equal(up.bias.to_local(), block.up.bias[mine])
        assert torch.equal(down.weight.to_local(), block.down.weight[:, mine])
    torch.testing.assert_close(model(tokens()), expected(tokens()), rtol=1e-5, atol=1e-6)


def pretrained_shards(rank: int, world_size: int, folder: Path) -> None:
    """A file instead of first weights, under two by two; rows dealt out as well."""
    if rank == 0:
        torch.manual_seed(11)
        saved = {name: tensor.detach().clone() for name, tensor in make_untied().state_dict().items()}
        safetensors.torch.save_file(saved, folder / "model.safetensors")
    dist.barrier()
    model, first = record(make_untied, 7)
    mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("dp_shard", "tp"))
    source = pretrained(folder, model, first)
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], PLAN)
        fully_shard(block, mesh=mesh["dp_shard"])
    materialise(model, source)
    torch.manual_seed(11)
    check(model, make_untied())


def two(rank: int, world_size: int, folder: Path) -> None:
    del folder
    for case in (fsdp, tensor_and_fsdp, tensor_with_rows):
        case(rank, world_size)


def four(rank: int, world_size: int, folder: Path) -> None:
    for case in (fsdp, fsdp_after_to_empty, tensor_and_fsdp, tensor_with_rows, built_for_real):
        case(rank, world_size)
    pretrained_shards(rank, world_size, folder)


def built_for_real(rank: int, world_size: int) -> None:
    """Where the factory cannot be recorded each rank builds the model in its turn: no rank waits for another's."""
    del rank

    def factory() -> Model:
        model = make()
        model.scale_view = model.embed.weight.detach()[0]
        return model

    model, source = record(factory, 7, small_bytes=64)
    assert isinstance(source, BuiltSource)
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    materialise(model, source)
    check(model, reference())
