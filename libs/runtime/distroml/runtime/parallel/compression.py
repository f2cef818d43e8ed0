"""How gradients are to be compressed: checked, agreed upon by all ranks, and the exchange that does it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch.distributed as dist
from torch import nn

from distroml.planner import Plan, PlanRefused
from distroml.planner.compression import AUTO
from distroml.runtime.compress import Scheme
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import Collectives, World, communication
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.shardsums import SHARD_CODECS, ShardSums

Residuals = Literal["folded", "exact"]


class CompressionDiffers(ValueError):
    """Ranks of one job were started with different settings of compression."""


@dataclass(frozen=True, slots=True)
class Compression:
    """Settings of compression.

    Attributes:
        scheme: by which gradients are summed along dp_replicate, such as "none" or "int8"; with "auto" `Trainer`
            chooses for each bucket.
        residuals: what checkpoints keep of what compression holds back: "folded" is one copy, the ranks' sum; "exact"
            is each rank's own beside it, with which a restart at the same world size and plan goes on bit for bit.
        shard: by which gradients are summed along dp_shard: "none", "int8" or "int4".

    Raises:
        ValueError: there is no such scheme or kind of residuals, or not along dp_shard; says what there is.
    """

    scheme: str = "none"
    residuals: Residuals = "folded"
    shard: str = "none"

    def __post_init__(self) -> None:
        if not self.adapts:
            parse_scheme(self.scheme)
        if self.residuals not in ("folded", "exact"):
            raise ValueError(f"residuals must be 'folded' or 'exact', got {self.residuals!r}")
        if self.shard not in ("none", *SHARD_CODECS):
            parse_scheme(self.shard)
            raise ValueError(
                f"compress_shard={self.shard!r} is not possible: along dp_shard nothing is fed back, since a residual "
                "would be as large as the whole model on every rank, so that only codes that are right in the mean "
                f"will do: {', '.join(SHARD_CODECS)}; {self.shard} is possible along dp_replicate, by compress="
            )

    @property
    def on(self) -> bool:
        """Whether anything is compressed along dp_replicate."""
        return self.adapts or parse_scheme(self.scheme).name != "none"

    @property
    def adapts(self) -> bool:
        """Whether schemes are chosen, and chosen anew, by what is measured."""
        return self.scheme.strip().lower() == AUTO

    @property
    def first_scheme(self) -> Scheme:
        """By which every bucket is exchanged until another is set."""
        return parse_scheme("none" if self.adapts else self.scheme)


NO_COMPRESSION = Compression()


def agree_on(compression: Compression, collectives: Collectives) -> None:
    """Make sure that all ranks have these settings. Collective.

    Raises:
        CompressionDiffers: they have not; says which rank wants what.
        PeerLost: another rank is gone.
    """
    wanted: defaultdict[Compression, list[int]] = defaultdict(list)
    for rank, one in enumerate(collectives.gather(compression)):
        wanted[one].append(rank)
    if len(wanted) > 1:
        told = "; ".join(
            f"rank {', '.join(map(str, ranks))}: compress={one.scheme!r}, compress_shard={one.shard!r}, "
            f"residuals={one.residuals!r}"
            for one, ranks in wanted.items()
        )
        raise CompressionDiffers(f"the ranks want different compression ({told}); start all of them alike")


def replica_exchange(plan: Plan, world: World, compression: Compression, seed: int) -> CompressedExchange | None:
    """What sums gradients along dp_replicate with compression; None where there is none. Collective.

    Raises:
        PeerLost: another rank is gone.
    """
    if not compression.on:
        return None
    group = _own_group(plan, world)
    return CompressedExchange(
        group, compression.first_scheme, seed=seed, device=world.device, samples=compression.adapts
    )


def shard_sums(plan: Plan, roots: Sequence[nn.Module], compression: Compression, seed: int) -> ShardSums | None:
    """What sums gradients along dp_shard with compression; None where there is none.

    Raises:
        PlanRefused: the plan has tp, too.
    """
    codec = SHARD_CODECS.get(compression.shard)
    if codec is None or plan.dp_shard == 1:
        return None
    if plan.tp > 1:
        # A unit's buffer has both what tp divides and what its ranks hold alike, and a block's code depends on both.
        raise PlanRefused(
            f"compress_shard={compression.shard!r} is not possible with tp={plan.tp}: parameters that all tp ranks "
            "hold would come apart; leave out compress_shard, or use tp=1"
        )
    sums = ShardSums(codec, seed)
    sums.take_over(roots)
    return sums


def _own_group(plan: Plan, world: World) -> dist.ProcessGroup | None:
    """A process group of the ranks that differ from this one along dp_replicate only, for one user."""
    if plan.dp_replicate == 1:
        return None
    replicas: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for rank in range(plan.world_size):
        place = plan.coordinate(rank)
        replicas[tuple(at for axis, at in place.items() if axis != "dp_replicate")].append(rank)
    own: dist.ProcessGroup | None = None
    with communication():
        # Every rank takes part in making every group, in one order.
        for ranks in replicas.values():
            group = dist.new_group(ranks)
            if world.rank in ranks:
                own = cast("dist.ProcessGroup", group)
        # Making a group ends before the others are known to be there: connections may come after it.
        dist.barrier(own, device_ids=[world.device.index] if world.device.type == "cuda" else None)
    return own
