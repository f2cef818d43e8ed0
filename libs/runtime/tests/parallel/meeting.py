"""What each rank of the pool does in tests of replicas that step by themselves: train, and all of them alone."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distroml.runtime import DataLoader
from distroml.runtime.compress.optim import OuterNesterov
from distroml.runtime.data import DataPosition
from distroml.runtime.data.ranges import after
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, CompressionDiffers, ParallelModel, PlanRefused, plan
from distroml.runtime.parallel.parallelize import spread
from distroml.runtime.training.step import Stepper
from distroml.runtime.training.votes import Wish

MICROBATCH = 2
SEED = 5


def data(size: int = 30) -> DataLoader[Any]:
    """Batches of which ranks get shares of different sizes."""
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(
        torch.utils.data.TensorDataset(x, torch.tanh(x.sum(1, keepdim=True) / 3)), 7, seed=9, microbatch=2
    )


def make() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def squares(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
    return (model(batch[0]) - batch[1]).square().sum(), len(batch[0])


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(
    world: World,
    steps: int,
    outer: OuterNesterov | None,
    compress: str = "none",
    grad_clip: float | None = None,
    look: Callable[[ParallelModel], None] | None = None,
) -> tuple[torch.Tensor, list[float], list[float], dict[str, int]]:
    """Parameters, losses, norms and wire bytes of a training as the trainer makes it, on this rank.

    The last step is one with a meeting, or none in particular where there is something to `look` at after it.
    """
    model, loader = make(), data()
    parallel = spread(
        model, plan(world_size=world.world_size, global_batch=7, microbatch=MICROBATCH), world, loss=squares,
        sample=None, seed=SEED, precision="fp32", compiled=False,
        compression=Compression(compress, outer=outer),
    )  # fmt: skip
    optimizer = adamw(parallel.parameters())
    stepper = Stepper(
        parallel=parallel, optimizer=optimizer, scheduler=None, data=loader, world=world, grad_clip=grad_clip,
        stop_at_non_finite=True, wishes=lambda: Wish.NONE,
    )  # fmt: skip
    position, losses, norms = DataPosition(), [], []
    for number in range(1, steps + 1):
        taken, done = stepper.run(number, position, last=number == steps and look is None)
        position = after(taken)
        losses += [one.info.loss for one in done]
        norms += [one.info.grad_norm for one in done]
    if look is not None:
        look(parallel)
    sent = parallel.exchange.wire.take() if parallel.exchange is not None else {}
    parallel.close()
    return flat(model), losses, norms, {"/".join(way): count for way, count in sent.items()}


def alone(
    ranks: int, steps: int, outer: OuterNesterov, grad_clip: float | None
) -> tuple[torch.Tensor, list[float], list[float], torch.Tensor]:
    """The algorithm as its paper has it: every replica's model in one process, in plain PyTorch."""
    loader, first = data(), make()
    models = [copy.deepcopy(first) for _ in range(ranks)]
    optimizers = [adamw(model.parameters()) for model in models]
    # The outer optimizer is torch's own, of a model that stands at the last meeting.
    anchor = copy.deepcopy(first)
    stepping = torch.optim.SGD(anchor.parameters(), lr=outer.lr, momentum=outer.momentum, nesterov=outer.momentum > 0)
    position, losses, norms = DataPosition(), [], []
    for number in range(1, steps + 1):
        loss_sum, count, squared = 0.0, 0, 0.0
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            work = loader.step_batches(position, rank, ranks, MICROBATCH)
            optimizer.zero_grad()
            terms = sum(len(batch[0]) for batch in work.batches)
            for batch in work.batches:
                total, _ = squares(model, batch)
                (total / terms).backward()
                loss_sum += total.item()
            count += terms
            squared += float(nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))) ** 2
            optimizer.step()
        losses.append(loss_sum / count)
        norms.append((squared / ranks) ** 0.5)
        position = after(work.taken)
        if number % outer.every == 0 or number == steps:
            for parts in zip(anchor.parameters(), *(model.parameters() for model in models), strict=True):
                start, *ends = parts
                start.grad = torch.stack([start.detach() - end.detach() for end in ends]).mean(0)
            stepping.step()
            for model in models:
                model.load_state_dict(anchor.state_dict())
    velocity = [stepping.state[one].get("momentum_buffer") for one in anchor.parameters()]
    return (
        flat(anchor),
        losses,
        norms,
        torch.cat([one.flatten() for one in velocity if one is not None] or [flat(anchor)]),
    )


def fold(world: World, every: int, steps: int) -> dict[str, float]:
    """Of what is saved between two meetings: how far it is from what a meeting then makes, and what it changed."""
    outer, found = OuterNesterov(every), {}
    right = alone(world.world_size, steps, outer, None)

    def joined(named: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([named[name].flatten() for name in ("0.weight", "0.bias", "2.weight", "2.bias")])

    def look(parallel: ParallelModel) -> None:
        meetings, model = parallel.meetings, parallel.module
        assert meetings.between
        before = [flat(model), joined(meetings.anchors()).clone(), joined(meetings.velocities()).clone()]
        made = {name: one.clone() for name, one in meetings.folded(parallel.collectives).items()}
        anchors = {name: one.clone() for name, one in meetings.anchors().items()}
        velocities = {name: one.clone() for name, one in meetings.velocities().items()}
        own = {name: one.detach().clone() for name, one in model.named_parameters()}

        def load(some: dict[str, torch.Tensor]) -> None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(some[name])

        found["model"] = float((joined(made) - right[0]).abs().max())
        # Another world: a meeting was made of it.
        load(made)
        meetings.resume(steps, velocities, anchors)
        found["velocity"] = float((joined(meetings.velocities()) - right[3]).abs().max())
        found["anchor"] = float((joined(meetings.anchors()) - joined(made)).abs().max())
        found["met"] = float(not meetings.between)
        # The same world: as if nothing had been.
        load(made)
        meetings.resume(steps, velocities, anchors, own)
        after_ = [flat(model), joined(meetings.anchors()), joined(meetings.velocities())]
        found["kept"] = float(all(torch.equal(one, two) for one, two in zip(before, after_, strict=True)))
        found["between"] = float(meetings.between)

    trained(world, steps, outer, look=look)
    return found


def against_alone(
    world: World, steps: int, every: int, lr: float, momentum: float, grad_clip: float | None = None
) -> dict[str, Any]:
    """How far a training is from the algorithm in one process, and a hash of its bits."""
    outer = OuterNesterov(every, lr, momentum)
    parameters, losses, norms, sent = trained(world, steps, outer, grad_clip=grad_clip)
    right = alone(world.world_size, steps, outer, grad_clip)
    return {
        "bits": hashlib.sha256(parameters.numpy().tobytes()).hexdigest(),
        "parameters": float((parameters - right[0]).abs().max()),
        "losses": max(abs(own - one) for own, one in zip(losses, right[1], strict=True)),
        "norms": max(abs(own - one) for own, one in zip(norms, right[2], strict=True)),
        "moved": float((parameters - flat(make())).norm()),
        "bytes": sum(count for way, count in sent.items() if not way.endswith("agreement")),
    }


def course(world: World, steps: int, every: int, compress: str) -> dict[str, Any]:
    """Losses, bytes and bits of a training."""
    outer = OuterNesterov(every) if every else None
    parameters, losses, _, sent = trained(world, steps, outer, compress)
    return {"losses": losses, "bytes": sent, "bits": hashlib.sha256(parameters.numpy().tobytes()).hexdigest()}


def refused(world: World, wanted: str, every: int, later: int = 0) -> str:
    """What is said of replicas that step by themselves under a plan, each rank `later` than the one before it."""
    chosen = plan(wanted, world_size=world.world_size, global_batch=8, microbatch=MICROBATCH)
    try:
        spread(
            make(), chosen, world, loss=squares, sample=None, seed=SEED, precision="fp32", compiled=False,
            compression=Compression(outer=OuterNesterov(every + later * world.rank)),
        )  # fmt: skip
    except (PlanRefused, CompressionDiffers) as error:
        return str(error)
    return "accepted"
