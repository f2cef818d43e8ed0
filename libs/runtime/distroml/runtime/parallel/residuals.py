"""What compression keeps of gradients, as checkpoints hold it: one sum for any world, and each rank's own for the same.

A residual is a gradient that is still to be told: what counts is the sum over the ranks of dp_replicate. That is saved
by parameter, in the parameter's own layout, so that any plan and any world size can take it over; each rank then keeps
an equal share. With the sum alone a restart at the same world goes on with other bits, since ranks had kept different
parts; so what each rank kept may be saved beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.compress import State
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.parallel.buffers import Buffer
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.gradients import local_of

Named = Sequence[tuple[str, nn.Parameter]]


def blank_residuals(parameters: Named) -> dict[str, torch.Tensor]:
    """A tensor for the residual of each parameter, in its layout, with any values: a load fills it."""
    return {clean(name): torch.empty_like(one.detach(), dtype=torch.float32) for name, one in parameters}


def folded_residuals(exchange: CompressedExchange, parameters: Named) -> dict[str, torch.Tensor]:
    """The sum over ranks of what they keep of each parameter's gradient. Collective. Raises `PeerLost`."""
    folded = exchange.fold()
    kept: dict[str, torch.Tensor] = {}
    for buffer in exchange.buffers:
        if (flat := folded.get(buffer.number)) is not None:
            for segment in buffer.spec.segments:
                name, parameter = parameters[segment.index]
                kept[clean(name)] = torch.empty_like(parameter.detach(), dtype=torch.float32)
                part = flat[segment.offset : segment.offset + segment.numel]
                local_of(kept[clean(name)]).copy_(part.view(segment.shape))
    return kept


def keep_folded(exchange: CompressedExchange, parameters: Named, kept: Mapping[str, torch.Tensor]) -> None:
    """Let each rank keep an equal share of what `folded_residuals` gave, at whatever world size and under any plan."""
    shares: dict[int, torch.Tensor] = {}
    for buffer in exchange.buffers:
        flat = torch.zeros(buffer.spec.numel, device=buffer.spec.device)
        for segment in buffer.spec.segments:
            if (residual := kept.get(clean(parameters[segment.index][0]))) is not None:
                flat[segment.offset : segment.offset + segment.numel] = local_of(residual).reshape(-1)
                shares[buffer.number] = flat
    exchange.keep_share(shares)


def own_state(exchange: CompressedExchange, world: str) -> dict[str, Any]:
    """All that this rank needs to go on bit for bit.

    Args:
        exchange: as it is after a step.
        world: names world size and plan.
    """
    return {
        "of": _signature(exchange, world),
        "buckets": {
            str(one.number): _state_of(one) for one in exchange.buffers if not one.plain or one.velocity is not None
        },
    }


def keep_own(exchange: CompressedExchange, world: str, saved: Mapping[str, Any]) -> bool:
    """Go on with what `own_state` gave; False, and nothing changed, where it was of another world or plan."""
    if saved.get("of") != _signature(exchange, world):
        return False
    buckets = cast("Mapping[str, Mapping[str, Any]]", saved.get("buckets", {}))
    for buffer in exchange.buffers:
        one = buckets.get(str(buffer.number))
        if one is None:
            continue
        device = buffer.spec.device
        tensors = cast("dict[str, torch.Tensor]", {name: value.to(device) for name, value in one["tensors"].items()})
        buffer.scheme = parse_scheme(one["scheme"])
        buffer.velocity = tensors.pop("velocity", None)
        buffer.state = State(
            residual=tensors.pop("residual", None),
            owned=tensors.pop("owned", None),
            owned_from=one["owned_from"],
            extra={name.removeprefix("extra."): value for name, value in tensors.items()},
        )
    return True


def _state_of(buffer: Buffer) -> dict[str, Any]:
    state = buffer.state
    named = {"residual": state.residual, "owned": state.owned, "velocity": buffer.velocity}
    named |= {f"extra.{name}": value for name, value in state.extra.items()}
    return {
        "scheme": buffer.scheme.name,
        "owned_from": state.owned_from,
        "tensors": {name: value for name, value in named.items() if value is not None},
    }


def _signature(exchange: CompressedExchange, world: str) -> str:
    layout = [(one.number, one.spec.numel, [piece.name for piece in one.layout.pieces]) for one in exchange.buffers]
    return hashlib.sha256(f"{world} {layout}".encode()).hexdigest()[:16]
