"""What the ranks of `test_plans` do: save under one plan, load under the next, and compare with one process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from distroml.objectstore import ObjectStore
from distroml.objectstore.filesystem import open_object_store
from distroml.runtime.checkpoint import Agreement, Rows, Whole, capture, restore
from distroml.runtime.checkpoint.layout import local_part
from distroml.runtime.parallel.weights import materialise, record
from libs.runtime.tests.checkpoint.common import JOB, Opened, Outcomes, commit, same, save, saver
from libs.runtime.tests.weights.models import Model, make


@dataclass(frozen=True)
class Plan:
    """Axes, outermost first; `copies` are replicas that know nothing of one another."""

    pp: int = 1
    copies: int = 1
    shard: int = 1
    tp: int = 1


def groups(model: nn.Module) -> list[dict[str, object]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups(model), lr=0.01, foreach=False)


def trained() -> tuple[Model, torch.optim.AdamW]:
    torch.manual_seed(7)
    model = make()
    optimizer = adamw(model)
    for step in range(3):
        model((torch.arange(12) * (step + 1) % 13).reshape(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.param_groups[1]["lr"] = 0.005
    for parameter, state in optimizer.state.items():
        # So that any rank can tell whether it got the right part of it.
        state["exp_avg"].copy_(parameter.detach() * 2)
    return model, optimizer


def part_of(plan: Plan, world_size: int) -> tuple[Model, Whole]:
    """This rank's part, with weights that no checkpoint has."""
    model, source = record(make, 99)
    rows: dict[str, Rows] = {}
    if plan.tp > 1:
        order = Rows.dealt(0, (16, 16, 16), plan.tp)
        for i in range(4):
            rows |= {f"blocks.{i}.up.weight": order, f"blocks.{i}.up.bias": order}
            rows[f"blocks.{i}.down.weight"] = Rows(1, order.ranges)
    whole = Whole.of(model, rows)
    mesh = init_device_mesh(
        "cpu", (plan.pp, plan.copies, plan.shard, plan.tp), mesh_dim_names=("pp", "copies", "shard", "tp")
    )
    if plan.pp > 1:
        cut(model, mesh.get_local_rank("pp"), plan.pp)
    apply(model, plan, mesh)
    materialise(model, source, rows=rows)
    return model, whole


def apply(model: Model, plan: Plan, mesh: DeviceMesh) -> None:
    held = [block for block in model.blocks if list(block.parameters())]
    for block in held:
        if plan.tp > 1:
            parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if plan.shard > 1:
            fully_shard(block, mesh=mesh["shard"])
    if plan.shard > 1:
        fully_shard(model, mesh=mesh["shard"])


def cut(model: Model, stage: int, stages: int) -> None:
    """Keep a stage's blocks; the first stage has the embedding, the last one the head that is tied to it."""
    per_stage = len(model.blocks) // stages
    away: list[nn.Module] = [block for i, block in enumerate(model.blocks) if i // per_stage != stage]
    if stage != 0:
        away.append(model.embed)
    if stage != stages - 1:
        away.append(model.head)
    for part in away:
        for module in part.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                setattr(module, name, torch.zeros(()).expand(parameter.shape))


def check(model: nn.Module, optimizer: torch.optim.Optimizer, wanted: tuple[Model, torch.optim.AdamW]) -> None:
    same(capture(wanted[0], wanted[1]), capture(model, optimizer))


def check_held(model: Model, optimizer: torch.optim.Optimizer, whole: Whole, wanted: Model) -> None:
    """What this rank holds is what DTensor and the deal of rows say, found without the code under test."""
    expected = dict(wanted.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        found = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        rows = whole.rows.get(name)
        held = expected[name]
        if rows is not None:
            order = torch.cat([torch.arange(start, stop) for start, stop in rows.ranges])
            held = held.index_select(rows.dim, order)
        assert torch.equal(found, held), name
        moment = optimizer.state[parameter]["exp_avg"]
        assert type(moment) is type(parameter.data)
        assert torch.equal(local_part(moment), local_part(parameter) * 2), name


def cross(rank: int, world_size: int, folder: Path, plans: Sequence[Plan]) -> None:
    store = open_object_store(folder / "objects")
    wanted = trained()
    more = {"trainer": {"step": 3, "tuple": (1, 2)}}
    shas = [""]
    if rank == 0:
        shas = [save(store, capture(*wanted, **more), 1)[0]]
    dist.broadcast_object_list(shas)
    sha = shas[0]
    for step, plan in enumerate(plans, start=2):
        model, whole = part_of(plan, world_size)
        optimizer = adamw(model)
        loaded: dict[str, object] = {"trainer": {"step": 0, "tuple": ()}}
        restore(store, JOB, sha, model, optimizer, rank=rank, more=loaded, whole=whole)
        assert loaded == more
        assert optimizer.param_groups[1]["lr"] == 0.005
        check_held(model, optimizer, whole, wanted[0])
        agreement = Agreement(rank, gather, whole)
        again = agreement.agree(capture(model, optimizer, whole=whole, **loaded))
        agreed = agreement.agree(capture(model, optimizer, whole=whole, **loaded))
        assert agreed.items == again.items
        sha = save_agreed(store, agreed, rank, world_size, step)
        bare = make()
        bare_optimizer = adamw(bare)
        plain: dict[str, object] = {"trainer": {}}
        restored = restore(store, JOB, sha, bare, bare_optimizer, rank=rank, more=plain)
        assert restored.extra == {"rank": rank}
        assert plain == more
        check(bare, bare_optimizer, wanted)
    dist.barrier()


def gather(value: object) -> list[object]:
    found: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(found, copy.copy(value))
    return found


def save_agreed(store: ObjectStore, agreed: object, rank: int, world_size: int, step: int) -> str:
    outcomes = Outcomes()
    one = saver(store, outcomes, rank, world_size)
    assert one.begin(agreed, {"rank": rank}, step=step, opened=Opened(step, f"s{step:010d}"))
    outcomes.expect(1)
    one.close(5)
    assert not outcomes.failed, outcomes.failed
    results = gather(outcomes.saved[0])
    sizes = [result.bytes_written for result in results]
    assert max(sizes) < 3 * (min(sizes) + 2000), sizes
    shas = [commit(store, results)] if rank == 0 else [None]
    dist.broadcast_object_list(shas)
    return shas[0]


def two(rank: int, world_size: int, folder: Path) -> None:
    plans = [Plan(pp=2), Plan(shard=2), Plan(tp=2), Plan(copies=2)]
    cross(rank, world_size, folder, plans)


def four(rank: int, world_size: int, folder: Path) -> None:
    plans = [
        Plan(shard=4),
        Plan(shard=2, tp=2),
        Plan(pp=2, shard=2),
        Plan(pp=2, tp=2),
        Plan(pp=4),
        Plan(copies=2, shard=2),
        Plan(pp=2, copies=2),
        Plan(copies=2, tp=2),
        Plan(copies=4),
    ]
    cross(rank, world_size, folder, plans)
