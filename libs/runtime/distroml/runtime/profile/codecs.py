"""What encoding and decoding gradients takes on this machine, by trying it: answers are a rank's own payloads again."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from torch import nn

from distroml.planner import Tried
from distroml.runtime.comm.rounds import drive
from distroml.runtime.compress import Layout, Piece, Round, Scheme, Turn
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import Collectives, World
from distroml.workerlink import environment
from distroml.workerlink.cores import usable_cores

# Enough elements that a codec's fixed costs do not count; more would only take longer.
TRIED = 1 << 20
_TRIES = 2


def time_codecs(
    model: nn.Module, schemes: Sequence[str], degrees: Sequence[int], collectives: Collectives
) -> tuple[Tried, ...]:
    """Seconds per element of each scheme among each number of ranks. Collective: all ranks encode at once, as they do
    in training, and the slowest counts. Equal on every rank.

    Args:
        model: whose gradients they are; on any device, `meta` included.
        schemes: as users write them.
        degrees: numbers of ranks that exchange.
        collectives: of the world.
    """
    layout = _layout_of(model)
    kinds = [(name, ranks) for name in schemes if name != "none" for ranks in degrees if ranks > 1]
    gradients = gradients_of(layout, collectives.world.device)
    mine = [tried(parse_scheme(name), layout, ranks, gradients)[1] / layout.numel for name, ranks in kinds]
    slowest = [max(told) for told in zip(*collectives.gather(mine), strict=True)]
    return tuple(Tried(name, ranks, spent_s) for (name, ranks), spent_s in zip(kinds, slowest, strict=True))


def _layout_of(model: nn.Module) -> Layout:
    """The model's first trainable parameters, as one buffer of about `TRIED` elements."""
    pieces: list[Piece] = []
    numel = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (not pieces or numel + parameter.numel() <= TRIED):
            pieces.append(Piece(name, numel, tuple(parameter.shape)))
            numel += parameter.numel()
    return Layout(numel, tuple(pieces))


def gradients_of(layout: Layout, device: torch.device) -> torch.Tensor:
    """What `tried` may be given; to make it takes longer than most codecs do."""
    return torch.linspace(-1.0, 1.0, layout.numel, device=device)


def tried(scheme: Scheme, layout: Layout, world_size: int, gradients: torch.Tensor) -> tuple[int, float]:
    """Rounds of an exchange of `gradients`, and seconds that this rank computes in it; the best of a few.

    On a processor they are its own: what else runs there makes ranks wait, and is no property of a codec.
    """
    device, flat = gradients.device, torch.empty_like(gradients)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    state = scheme.prepare(layout, world_size, device)
    best_s, count = float("inf"), 0
    for step in range(1, _TRIES + 1):
        flat.copy_(gradients)
        driven = drive(
            scheme.rounds(flat, layout, state, Turn(0, world_size, step, 0, 0, 1.0, finite=True)),
            lambda wanted: _own(wanted, world_size),
            lambda: _synchronise(device),
            clock,
        )
        best_s, count = min(best_s, driven.computing_s), driven.rounds
    return count, best_s


def _own(wanted: Round, world_size: int) -> torch.Tensor:
    payload = wanted.filled()
    if wanted.how == "sum":
        return payload
    if wanted.how == "gather":
        return payload.expand(world_size, -1).contiguous()
    return payload.view(world_size, -1)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def codec_slows(world: World) -> float:
    """Share of the codecs' time that computing loses: none where the exchange's thread has a core of its own."""
    if world.device.type != "cpu":
        return 1.0
    ranks = int(os.environ.get(environment.LOCAL_WORLD_SIZE, world.world_size))
    free = usable_cores() - ranks * torch.get_num_threads()
    return 0.0 if free >= ranks else 1.0
