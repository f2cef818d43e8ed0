"""What a search may choose from: meshes, orders of their axes on the machines, microbatches, schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

from distroml.planner.cost.pipeline import fits_schedule
from distroml.planner.plan import AXES, DEFAULT_BUCKET_MB, RECOMPUTE, Axis, Plan, Recompute, Schedule
from distroml.planner.possible import fits_tp
from distroml.planner.profile import ModelProfile
from distroml.planner.request import Wish
from distroml.planner.topology import Route

# Larger microbatches than this gain nothing more; a rank's whole share is tried as well.
_LARGEST_MICROBATCH = 64
_MOST_CHUNKS = 8
_SEVERAL: tuple[Schedule, ...] = ("interleaved", "zero_bubble")


class Shape(NamedTuple):
    """The degrees that decide computation; what remains of the world is data-parallel."""

    tp: int
    pp: int
    dp: int


class Core(NamedTuple):
    """A shape, and all choices on which the pipeline's time depends."""

    shape: Shape
    microbatch: int
    recompute: Recompute
    sequence_parallel: bool
    schedule: Schedule
    chunks: int


def divisors(number: int) -> list[int]:
    """Ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def shapes(profile: ModelProfile, world: int, wish: Wish) -> list[Shape]:
    """Every split of `world` into tp, pp and data parallelism that the model and the wish allow."""
    found: list[Shape] = []
    for tp in divisors(world):
        if wish.tp not in (None, tp) or not fits_tp(tp, profile):
            continue
        for pp in divisors(world // tp):
            dp = world // tp // pp
            impossible = pp > 1 and (profile.no_pp or pp > profile.block_count)
            if impossible or wish.pp not in (None, pp) or not list(splits(dp, wish)):
                continue
            found.append(Shape(tp, pp, dp))
    return found


def splits(dp: int, wish: Wish) -> Iterator[tuple[int, int]]:
    """(dp_replicate, dp_shard) pairs of `dp` ranks."""
    for dp_shard in divisors(dp):
        if wish.dp_shard in (None, dp_shard) and wish.dp_replicate in (None, dp // dp_shard):
            yield dp // dp_shard, dp_shard


def microbatches(global_batch: int, shape: Shape, wish: Wish) -> list[int]:
    """Sizes into which a rank's share divides; none where the batch does not divide among the ranks."""
    if global_batch < shape.dp:
        return []
    if global_batch % shape.dp:
        # Only whole copies of the model may take unequal parts.
        alone = shape.tp == shape.pp == 1 and wish.dp_shard in (None, 1)
        share = -(-global_batch // shape.dp) if alone else 0
        sizes = range(1, min(share, _LARGEST_MICROBATCH) + 1)
    else:
        share = global_batch // shape.dp
        sizes = divisors(share)
    found = [size for size in sizes if size <= _LARGEST_MICROBATCH or size in (share, wish.microbatch)]
    if wish.microbatch is not None:
        found = [size for size in found if size == min(wish.microbatch, share)]
    if wish.grad_accum_steps is not None:
        found = [size for size in found if -(-share // size) == wish.grad_accum_steps]
    return found


def schedules(shape: Shape, blocks: int, count: int, wish: Wish) -> list[tuple[Schedule, int]]:
    """Schedules with their chunks per rank that can run `count` microbatches."""
    if shape.pp == 1:
        return [("1f1b", 1)]
    most = blocks // shape.pp
    many = [v for v in range(2, most + 1) if v <= _MOST_CHUNKS or v == most]
    found: list[tuple[Schedule, int]] = [("1f1b", 1), ("gpipe", 1), ("zero_bubble", 1)]
    found.extend((name, v) for v in many for name in _SEVERAL)
    chunks = wish.chunks if wish.stages is None else len(wish.stages) // shape.pp
    if chunks is not None and chunks > 1:
        # A wished number of chunks may be an unusual one.
        found.extend((name, chunks) for name in _SEVERAL if chunks not in many)
    return [
        (name, v)
        for name, v in found
        if wish.schedule in (None, name)
        and chunks in (None, v)
        and v <= most
        and not fits_schedule(name, shape.pp, v, count)
    ]


def cores(profile: ModelProfile, shape: Shape, global_batch: int, wish: Wish) -> list[Core]:
    """Every choice for `shape` on which the pipeline's time depends."""
    sequence = [False, True] if profile.divides_sequence(shape.tp) else [False]
    saving = _recomputes(profile)
    again: list[Recompute] = [one for one in RECOMPUTE if one == "none" or one in saving]
    if wish.recompute is not None:
        again = [wish.recompute]
    share = -(-global_batch // shape.dp)
    found: list[Core] = []
    for size in microbatches(global_batch, shape, wish):
        for schedule, chunks in schedules(shape, profile.block_count, -(-share // size), wish):
            for recompute in again:
                for parallel in sequence:
                    if wish.sequence_parallel in (None, parallel) or shape.tp == 1:
                        found.append(Core(shape, size, recompute, parallel, schedule, chunks))
    return found


def _recomputes(profile: ModelProfile) -> set[str]:
    """Kinds of recomputation that save anything."""
    kinds = {kind for unit in profile.blocks for kind in unit.saved}
    return {kind for kind in kinds if any(unit.saved.get(kind) != unit.saved.get("none") for unit in profile.blocks)}


def orders(sizes: dict[Axis, int], wish: Wish, route: Callable[[int, int], Route]) -> list[tuple[Axis, ...]]:
    """Orders of the axes that lay at least one of them on better links than any other order does."""
    if wish.order is not None:
        return [wish.order]
    # Axes of size 1 may stand anywhere: the usual place.
    apart: list[Axis] = [axis for axis in AXES if sizes[axis] > 1]
    found: dict[tuple[Route, ...], tuple[Axis, ...]] = {}
    for inner in permutations(reversed(apart)):
        stride = 1
        routes: dict[Axis, Route] = {}
        for axis in inner:
            routes[axis] = route(sizes[axis], stride)
            stride *= sizes[axis]
        outer = tuple(reversed(inner))
        order: tuple[Axis, ...] = (
            AXES if list(outer) == apart else (*(axis for axis in AXES if axis not in apart), *outer)
        )
        found.setdefault(tuple(routes[axis] for axis in apart), order)
    return [
        order
        for routes, order in found.items()
        if not any(other != routes and _dominates(other, routes) for other in found)
    ]


def _dominates(one: tuple[Route, ...], other: tuple[Route, ...]) -> bool:
    return all(_better(a, b) for a, b in zip(one, other, strict=True))


def _better(one: Route, other: Route) -> bool:
    """Whether a group on `one` is never slower: no level crossed more often or by fewer links."""
    hops = {hop.level.name: hop for hop in other}
    for hop in one:
        there = hops.get(hop.level.name)
        if there is None or hop.fan > there.fan or hop.below < there.below:
            return False
    return True


def plan_of(core: Core, split: tuple[int, int], stages: tuple[int, ...], count: int, wish: Wish) -> Plan:
    """The plan of a core and a data-parallel split, its axes in the wished or the usual order."""
    return Plan(
        dp_replicate=split[0],
        dp_shard=split[1],
        tp=core.shape.tp,
        pp=core.shape.pp,
        order=wish.order or AXES,
        microbatch=core.microbatch,
        grad_accum_steps=count,
        schedule=core.schedule,
        stages=stages,
        recompute=core.recompute,
        reshard_after_forward=wish.reshard_after_forward is not False,
        sequence_parallel=core.sequence_parallel,
        bucket_mb=wish.bucket_mb or DEFAULT_BUCKET_MB,
    )
