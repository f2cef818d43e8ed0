"""From what is known of a plan to a whole one, for a given number of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from distroml.planner import AXES, Plan, PlanRefused

__all__ = ["Plan", "PlanRefused", "even_stages", "plan"]

_DEFAULT_BUCKET_MB = 8.0
_NUMBERS = (*AXES, "microbatch")
_WORDS = ("schedule", "recompute")
_FLAGS = ("reshard_after_forward", "sequence_parallel")
_NAMES = (*_NUMBERS, "bucket_mb", *_WORDS, "stages", "order", *_FLAGS)


def _parse(text: str) -> dict[str, Any]:
    wish: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in _NAMES or not equals:
            raise PlanRefused(
                f"plan {text!r} has {part!r}: expected 'auto' or NAME=VALUE parts separated by commas, "
                f"with NAME one of {', '.join(_NAMES)}"
            )
        wish[name] = _value(text, part, name, value)
    return wish


def _value(text: str, part: str, name: str, value: str) -> Any:
    if name in _WORDS:
        return value
    if name == "order":
        return tuple(value.split("/"))
    if name in _FLAGS:
        if value not in ("true", "false"):
            raise PlanRefused(f"plan {text!r} has {part!r}: {name} must be true or false")
        return value == "true"
    try:
        if name == "stages":
            return tuple(int(one) for one in value.split("/"))
        number = float(value) if name == "bucket_mb" else int(value)
    except ValueError:
        number = 0
    if number <= 0:
        raise PlanRefused(f"plan {text!r} has {part!r}: {name} must be a positive number")
    return number


def even_stages(blocks: int, pp: int) -> tuple[int, ...]:
    """`blocks` dealt out to `pp` stages, as evenly as can be; the first stages, which hold the embedding, get less."""
    if blocks < pp:
        raise PlanRefused(
            f"pp={pp} needs at least {pp} blocks, but the model's chain has {blocks}; the nearest that works: "
            f"pp={blocks}"
        )
    return tuple(blocks * (stage + 1) // pp - blocks * stage // pp for stage in range(pp))


def plan(
    request: str | Plan = "auto",
    *,
    world_size: int,
    global_batch: int | None = None,
    microbatch: int | None = None,
    parameter_bytes: int | None = None,
    blocks: Callable[[], int] | None = None,
) -> Plan:
    """The plan for `world_size` workers.

    Args:
        request: "auto", or what is known of the plan such as "dp_shard=2,tp=2", or a ready `Plan`. What is left open
            of the mesh becomes dp_replicate.
        world_size: workers of the generation.
        global_batch: samples per step, for the number of accumulated microbatches.
        microbatch: most samples of one forward pass.
        parameter_bytes: size of the gradients, for the plan's reasons.
        blocks: how many blocks the model's chain has; asked only where stages must be made.

    Raises:
        PlanRefused: the request cannot be read, or does not fit the world size, the batch or the chain.
    """
    if isinstance(request, Plan):
        known = {name: getattr(request, name) for name in _NAMES if name != "bucket_mb"} | {
            "bucket_mb": request.bucket_mb
        }
        known["microbatch"] = microbatch or request.microbatch
    else:
        known = {} if request == "auto" else _parse(request)
        known["microbatch"] = known.get("microbatch", microbatch)
    _fill_mesh(known, world_size)
    made = Plan(**{**known, "stages": ()} if known.get("pp", 1) > 1 and not known.get("stages") else known)
    if made.pp > 1 and not made.stages:
        if blocks is None:
            raise PlanRefused(f"pp={made.pp} needs a model whose blocks can be counted, or stages=N/N/…")
        made = replace(made, stages=even_stages(blocks(), made.pp))
    reasons = [f"{axis}={size}: {_WHY[axis]}" for axis, size in made.mesh.items() if size > 1 or axis == "dp_replicate"]
    if "bucket_mb" not in known:
        reasons.append(f"bucket_mb={made.bucket_mb:g}: the first sums overlap with the rest of the backward pass")
    accumulate = 1
    if global_batch is not None:
        accumulate = accumulation(made, global_batch)
        largest = -(-global_batch // made.dp)
        reasons.append(f"grad_accum_steps={accumulate}: at most {largest} of {global_batch} samples on a worker")
    if parameter_bytes is not None:
        reasons.append(f"gradients of {parameter_bytes / 1e6:.1f} MB in all")
    return replace(made, grad_accum_steps=accumulate, reasons=tuple(reasons))


_WHY = {
    "dp_replicate": "whole copies of what a worker holds",
    "dp_shard": "parameters, gradients and optimizer state shared out",
    "tp": "the inside of layers divided",
    "pp": "the chain of blocks cut into stages",
}


def _fill_mesh(known: dict[str, Any], world_size: int) -> None:
    others = 1
    for axis in ("dp_shard", "tp", "pp"):
        others *= cast("int", known.get(axis, 1))
    wanted = known.get("dp_replicate")
    if wanted is not None and wanted * others != world_size:
        raise PlanRefused(
            f"the plan asks for {'dp_replicate=' + str(wanted) if others == 1 else f'{wanted * others} workers'}, but "
            f"this generation has {world_size} worker(s); leave dp_replicate out to let it follow the world size"
        )
    if world_size % others:
        near = [size for size in (others * (world_size // others), others * (world_size // others + 1)) if size]
        raise PlanRefused(
            f"the plan divides the model over {others} workers, which does not divide this generation's {world_size}; "
            f"{' or '.join(map(str, near))} workers would work, or another plan"
        )
    known["dp_replicate"] = world_size // others


def accumulation(made: Plan, global_batch: int) -> int:
    """Microbatches of one data-parallel rank in one step.

    Raises:
        PlanRefused: ranks that must make the same passes would get different numbers of samples.
    """
    largest = -(-global_batch // made.dp)
    microbatch = made.microbatch or largest
    if made.world_size > made.dp_replicate:
        piece = made.dp * (made.microbatch or 1)
        if global_batch % piece:
            lower = global_batch - global_batch % piece
            near = [str(size) for size in (lower, lower + piece) if size]
            smaller = _divisor(global_batch // made.dp, microbatch) if not global_batch % made.dp else None
            raise PlanRefused(
                f"global_batch={global_batch} does not divide into microbatches of {made.microbatch or 'equal size'} on {made.dp} "
                f"data-parallel rank(s), as the plan needs; the nearest that work: global_batch={' or '.join(near)}"
                + (f", or microbatch={smaller}" if smaller else "")
            )
    return -(-largest // microbatch)


def _divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(at_most, number), 0, -1) if number % size == 0)
