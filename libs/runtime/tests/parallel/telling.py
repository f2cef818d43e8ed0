"""What each rank of the pool does in tests of optimizers that exchange something in place of gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distroml.runtime import DGC, OneBitAdam
from distroml.runtime.compress import SimulatedRanks, Turn, parse_scheme
from distroml.runtime.compress.optim import AdamState, FrozenVariance, ratio_at
from distroml.runtime.data import DataPosition
from distroml.runtime.data.ranges import after
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, plan
from distroml.runtime.parallel.parallelize import spread
from distroml.runtime.training.offers import layout_of
from distroml.runtime.training.step import Stepper
from distroml.runtime.training.votes import Wish
from libs.runtime.tests.parallel.meeting import MICROBATCH, SEED, data, flat, make, squares

LR = {"onebit": 0.01, "dgc": 0.02, "adamw": 0.01, "sgd": 0.02}
WARM_UP = 5
DECAY = 0.1


def optimizer_of(kind: str, parameters: Any, warm_up: int, clip: float | None, decay: float) -> torch.optim.Optimizer:
    match kind:
        case "onebit":
            return OneBitAdam(parameters, LR[kind], warm_up_steps=warm_up, weight_decay=decay)
        case "dgc":
            return DGC(parameters, LR[kind], momentum=0.9, weight_decay=decay, clip=clip, warm_up_steps=warm_up)
        case "adamw":
            return torch.optim.AdamW(parameters, LR[kind], weight_decay=decay)
        case _:
            return torch.optim.SGD(parameters, LR[kind], momentum=0.9)


def trained(
    world: World, kind: str, compress: str, steps: int, warm_up: int, clip: float | None, decay: float
) -> tuple[nn.Module, list[float], Any, int]:
    """The model after a training as the trainer makes it, losses, the buckets' layout, and bytes that travelled."""
    model, loader = make().float(), data()
    parallel = spread(
        model, plan(world_size=world.world_size, global_batch=7, microbatch=MICROBATCH), world, loss=rounded,
        sample=None, seed=SEED, precision="fp32", compiled=False, compression=Compression(compress),
    )  # fmt: skip
    optimizer = optimizer_of(kind, parallel.parameters(), warm_up, clip, decay)
    if isinstance(optimizer, OneBitAdam | DGC):
        parallel.exchange_for(optimizer, Compression(compress), 0)
    stepper = Stepper(
        parallel=parallel, optimizer=optimizer, scheduler=None, data=loader, world=world, grad_clip=None,
        stop_at_non_finite=True, wishes=lambda: Wish.NONE,
    )  # fmt: skip
    position, losses = DataPosition(), []
    for number in range(1, steps + 1):
        taken, done = stepper.run(number, position)
        position = after(taken)
        losses += [one.info.loss for one in done]
    sent = sum(parallel.exchange.wire.take().values()) if parallel.exchange is not None else 0
    layout = parallel.gradients.layout
    parallel.close()
    return model, losses, layout, sent


def rounded(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
    return squares(model, tuple(one.float() for one in batch))


def course(world: World, kind: str, compress: str, steps: int, warm_up: int = 0) -> dict[str, Any]:
    """Losses, bytes and bits of a training."""
    model, losses, layout, sent = trained(world, kind, compress, steps, warm_up, None, 0.0)
    dense = steps * sum(spec.numel * 4 for spec in layout)
    return {
        "losses": losses,
        "bytes": sent,
        "dense_bytes": dense,
        "bits": hashlib.sha256(flat(model).numpy().tobytes()).hexdigest(),
    }


def against_alone(world: World, kind: str, compress: str, steps: int, clip: float | None = None) -> dict[str, Any]:
    """How far a training is from the algorithm with all ranks in one process, and from where it began."""
    model, _, layout, _ = trained(world, kind, compress, steps, WARM_UP, clip, DECAY)
    (spec,) = layout
    pieces = [(layout_of(spec).pieces[n], segment.index) for n, segment in enumerate(spec.segments)]
    right = make().float()
    parameters = list(right.parameters())

    def gradients(position: DataPosition) -> tuple[list[torch.Tensor], float, Any]:
        flats, count = [], 0
        for rank in range(world.world_size):
            work = data().step_batches(position, rank, world.world_size, MICROBATCH)
            right.zero_grad()
            flats.append(torch.zeros(spec.numel))
            for batch in work.batches:
                total, terms = rounded(right, batch)
                total.backward()
                count += terms
            for piece, index in pieces:
                grad = parameters[index].grad
                if grad is not None:
                    flats[-1][piece.offset : piece.offset + piece.numel] = grad.flatten()
        return flats, float(count), work.taken

    move = (_onebit if kind == "onebit" else _dgc)(world.world_size, compress, layout_of(spec), clip)
    position = DataPosition()
    for number in range(1, steps + 1):
        flats, unit, taken = gradients(position)
        position = after(taken)
        direction = move(number, flats, unit)
        with torch.no_grad():
            for piece, index in pieces:
                part = direction[piece.offset : piece.offset + piece.numel].view(piece.shape)
                parameters[index].mul_(1 - LR[kind] * DECAY).sub_(LR[kind] * part)
    return {
        "bits": hashlib.sha256(flat(model).numpy().tobytes()).hexdigest(),
        "gap": float((flat(model) - flat(right)).abs().max()),
        "moved": float((flat(model) - flat(make().float())).norm()),
    }


Move = Callable[[int, list[torch.Tensor], float], torch.Tensor]


def _onebit(world_size: int, compress: str, layout: Any, clip: float | None) -> Move:
    """1-bit Adam over a bucket: its rule is tested against the paper by itself."""
    assert clip is None
    ranks = SimulatedRanks(parse_scheme("none"), layout, world_size)
    rule, state = FrozenVariance(WARM_UP), AdamState.like(torch.zeros(layout.numel))

    def move(number: int, flats: list[torch.Tensor], unit: float) -> torch.Tensor:
        if number == WARM_UP + 1:
            ranks.scheme = parse_scheme(compress if world_size > 1 else "none")
            ranks.states = [ranks.scheme.prepare(layout, world_size, torch.device("cpu")) for _ in flats]
        for rank, one in enumerate(flats):
            rule.before(one, state, Turn(rank, world_size, number, 0, 0, unit))
        ranks.exchange(flats, unit)
        return rule.direction(flats[0], state, unit)

    return move


def _dgc(world_size: int, compress: str, layout: Any, clip: float | None) -> Move:
    """Algorithm 4 of the paper, with sums of what each rank tells of its own accumulated velocity."""
    ratio = float(compress.partition(":")[2])
    velocities = [torch.zeros(layout.numel) for _ in range(world_size)]
    waiting = [torch.zeros(layout.numel) for _ in range(world_size)]

    def move(number: int, flats: list[torch.Tensor], unit: float) -> torch.Tensor:
        told = torch.zeros(layout.numel)
        count = -(-layout.numel * ratio_at(number, WARM_UP, ratio) // 1)
        for one, velocity, kept in zip(flats, velocities, waiting, strict=True):
            gradient = one / unit
            if clip is not None:
                gradient *= min(1.0, clip / world_size**0.5 / (float(gradient.norm()) + 1e-6))
            velocity.mul_(0.9).add_(gradient)
            if world_size == 1:
                # Nobody to tell: momentum as of SGD, without masking.
                return velocity.clone()
            kept.add_(velocity)
            chosen = kept.abs().topk(int(count)).indices
            told[chosen] += kept[chosen]
            kept[chosen] = 0.0
            velocity[chosen] = 0.0
        return told

    return move


def divided(world: World, plan_: str) -> str:
    """What is said of an optimizer that knows whole parameters only."""
    chosen = plan(plan_, world_size=world.world_size, global_batch=8, microbatch=MICROBATCH)
    model = make().float()
    parallel = spread(
        model, chosen, world, loss=rounded, sample=None, seed=SEED, precision="fp32", compiled=False,
        compression=Compression("sign"),
    )  # fmt: skip
    optimizer = OneBitAdam(parallel.parameters(), warm_up_steps=2)
    try:
        parallel.exchange_for(optimizer, Compression("sign"), 0)
    except ValueError as error:
        return str(error)
    finally:
        parallel.close()
    return "accepted"
