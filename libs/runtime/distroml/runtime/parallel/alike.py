"""What all ranks of one job must have alike, asked when they meet: else they would hang later, or come apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch.optim import Optimizer

from distroml.planner import Plan
from distroml.runtime.compress import parse_spec
from distroml.runtime.compress.lowrank import arithmetic
from distroml.runtime.compress.optim import CompressedOptimizer, OuterNesterov
from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel.compression import Compression

T = TypeVar("T", bound=Hashable)


class RanksDiffer(ValueError):
    """Ranks of one job were started with different settings; says which rank has what."""


class CompressionDiffers(RanksDiffer):
    """Of compression, or of what they exchange in place of gradients."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one rank was started with.

    Attributes:
        compression: its settings.
        seed: of the job.
        plan: as text.
        arithmetic: on what the bits depend that come out of its exchanges; codes give the same everywhere.
    """

    compression: Compression
    seed: int
    plan: str
    arithmetic: str = ""


def agree_on(
    compression: Compression,
    collectives: Collectives,
    *,
    seed: int,
    plan: Plan | str,
    device: torch.device | None = None,
) -> None:
    """Make sure that all ranks have these settings, and will make the same of what they are told. Collective.

    Args:
        compression: as this rank wants it.
        collectives: of all ranks.
        seed: of the job.
        plan: the whole one, or what this rank knows of it.
        device: on which exchanges are formed; None where there are none that have to be alike to the bit.

    Raises:
        CompressionDiffers: they have not, or will not; says which rank wants or does what.
        RanksDiffer: they have different plans or seeds.
        PeerLost: another rank is gone.
    """
    text = plan if isinstance(plan, str) else _fixed(plan)
    how = _arithmetic(compression, device) if device is not None else ""
    told = collectives.gather(Wanted(compression, seed, text, how))
    if plans := _apart([one.plan for one in told], str):
        raise RanksDiffer(f"the ranks have different plans ({plans}); start all of them alike")
    if wanted := _apart([one.compression for one in told], _text_of):
        raise CompressionDiffers(f"the ranks want different compression ({wanted}); start all of them alike")
    if seeds := _apart([one.seed for one in told], str):
        raise RanksDiffer(
            f"the ranks have different seeds ({seeds}), and by one they draw first weights, and what random codes "
            "tell; start all of them alike: what has to differ from rank to rank is drawn apart all the same"
        )
    if done := _apart([one.arithmetic for one in told], str):
        raise CompressionDiffers(
            f"with compress={compression.scheme!r} the ranks would come apart, since they form PowerSGD's products in "
            f"different ways ({done}); on each machine install a compiler of C++17 (Debian: apt install g++) and "
            "DistroML again, or use like GPUs, or choose a scheme such as int8"
        )


def agree_on_exchanged(optimizer: Optimizer, collectives: Collectives) -> None:
    """Make sure that the optimizers of all ranks have the same exchanged, be it gradients. Collective.

    Raises:
        CompressionDiffers: they have not; says which rank has what.
        PeerLost: another rank is gone.
    """
    own = optimizer.description if isinstance(optimizer, CompressedOptimizer) else "gradients"
    if told := _apart(collectives.gather(own), str):
        raise CompressionDiffers(
            f"the ranks' optimizers have different things exchanged, or at different steps ({told}); make the same "
            "optimizer with the same settings on all of them"
        )


def _fixed(plan: Plan) -> str:
    """What all ranks must have of a plan: replicas that are whole may each make their passes as they like."""
    if plan.world_size == plan.dp_replicate:
        plan = replace(plan, microbatch=None, grad_accum_steps=1)
    return str(plan)


def _arithmetic(compression: Compression, device: torch.device) -> str:
    low_rank = compression.adapts or parse_spec(compression.scheme).kind == "powersgd"
    return arithmetic(device) if low_rank else ""


def _apart(told: Sequence[T], say: Callable[[T], str]) -> str:
    """Which ranks told what; empty where all told the same."""
    ranks: defaultdict[T, list[int]] = defaultdict(list)
    for rank, one in enumerate(told):
        ranks[one].append(rank)
    if len(ranks) == 1:
        return ""
    return "; ".join(f"rank {', '.join(map(str, some))}: {say(one)}" for one, some in ranks.items())


def _text_of(one: Compression) -> str:
    return (
        f"compress={one.scheme!r}, compress_shard={one.shard!r}, compress_gather={one.gather!r}, "
        f"residuals={one.residuals!r}{_text_of_outer(one.outer)}"
    )


def _text_of_outer(outer: OuterNesterov | None) -> str:
    if outer is None:
        return ""
    return f", sync_every={outer.every}, outer_lr={outer.lr:g}, outer_momentum={outer.momentum:g}"
