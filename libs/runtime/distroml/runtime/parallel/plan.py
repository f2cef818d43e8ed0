"""From what is known of a plan to a whole one, for a given number of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distroml.planner import Plan, PlanRefused, Wish, parse_wish, wish_of
from distroml.planner.plan import DEFAULT_BUCKET_MB, Axis

__all__ = ["Plan", "PlanRefused", "even_stages", "plan"]


def even_stages(blocks: int, stages: int) -> tuple[int, ...]:
    """`blocks` dealt out to `stages`, as evenly as can be; the first stages, which hold the embedding, get less."""
    if blocks < stages:
        raise PlanRefused(
            f"{stages} stages need at least {stages} blocks, but the model's chain has {blocks}; the nearest that "
            f"works: pp={blocks}"
        )
    return tuple(blocks * (stage + 1) // stages - blocks * stage // stages for stage in range(stages))


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
    wish = wish_of(request) if isinstance(request, Plan) else parse_wish(request)
    mesh = _mesh(wish, world_size)
    stages = wish.stages or ()
    if mesh["pp"] > 1 and not stages:
        if blocks is None:
            raise PlanRefused(f"pp={mesh['pp']} needs a model whose blocks can be counted, or stages=N/N/…")
        stages = even_stages(blocks(), mesh["pp"] * (wish.chunks or _chunks(wish)))
    unset = Plan()
    made = Plan(
        dp_replicate=mesh["dp_replicate"],
        dp_shard=mesh["dp_shard"],
        tp=mesh["tp"],
        pp=mesh["pp"],
        order=wish.order or unset.order,
        microbatch=microbatch or wish.microbatch,
        schedule=wish.schedule or unset.schedule,
        stages=stages,
        recompute=wish.recompute or unset.recompute,
        reshard_after_forward=unset.reshard_after_forward
        if wish.reshard_after_forward is None
        else (wish.reshard_after_forward),
        sequence_parallel=bool(wish.sequence_parallel),
        bucket_mb=wish.bucket_mb or DEFAULT_BUCKET_MB,
    )
    if made.sequence_parallel and made.tp == 1:
        raise PlanRefused("sequence_parallel=yes divides what tp ranks hold as copies: it needs tp=N, or leave it out")
    reasons = [f"{axis}={size}: {_WHY[axis]}" for axis, size in made.mesh.items() if size > 1 or axis == "dp_replicate"]
    if wish.bucket_mb is None:
        reasons.append(f"bucket_mb={made.bucket_mb:g}: the first sums overlap with the rest of the backward pass")
    accumulate = 1
    if global_batch is not None:
        accumulate = accumulation(made, global_batch)
        largest = -(-global_batch // made.dp)
        reasons.append(f"grad_accum_steps={accumulate}: at most {largest} of {global_batch} samples on a worker")
    if parameter_bytes is not None:
        reasons.append(f"gradients of {parameter_bytes / 1e6:.1f} MB in all")
    return replace(made, grad_accum_steps=accumulate, reasons=tuple(reasons))


def _chunks(wish: Wish) -> int:
    return 2 if wish.schedule in ("interleaved", "zero_bubble") else 1


_WHY = {
    "dp_replicate": "whole copies of what a worker holds",
    "dp_shard": "parameters, gradients and optimizer state shared out",
    "tp": "the inside of layers divided",
    "pp": "the chain of blocks cut into stages",
}


def _mesh(wish: Wish, world_size: int) -> dict[Axis, int]:
    sizes: dict[Axis, int] = {axis: size or 1 for axis, size in wish.mesh.items()}
    others = sizes["dp_shard"] * sizes["tp"] * sizes["pp"]
    wanted = wish.dp_replicate
    if wanted is not None and wanted * others != world_size:
        raise PlanRefused(
            f"the plan asks for {f'dp_replicate={wanted}' if others == 1 else f'{wanted * others} workers'}, but this "
            f"generation has {world_size} worker(s); leave dp_replicate out to let it follow the world size"
        )
    if world_size % others:
        near = [size for size in (others * (world_size // others), others * (world_size // others + 1)) if size]
        raise PlanRefused(
            f"the plan divides the model over {others} workers, which does not divide this generation's {world_size}; "
            f"{' or '.join(map(str, near))} workers would work, or another plan"
        )
    return {**sizes, "dp_replicate": world_size // others}


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
                f"global_batch={global_batch} does not divide into microbatches of "
                f"{made.microbatch or 'equal size'} on {made.dp} "
                f"data-parallel rank(s), as the plan needs; the nearest that work: global_batch={' or '.join(near)}"
                + (f", or microbatch={smaller}" if smaller else "")
            )
    return -(-largest // microbatch)


def _divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(at_most, number), 0, -1) if number % size == 0)
