"""How gradients are to be compressed: checked, and the exchange that does it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch.distributed as dist
from torch import nn

from distroml.planner import Plan, PlanRefused
from distroml.planner.compression import AUTO
from distroml.runtime.comm.algorithms import Arrangement, host_name
from distroml.runtime.compress import Scheme
from distroml.runtime.compress.optim import OuterNesterov
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import Collectives, World, communication
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.reducer import fastest_sums
from distroml.runtime.parallel.shardgathers import GATHER_CODECS, ShardGathers
from distroml.runtime.parallel.shardsums import SHARD_CODECS, ShardSums

Residuals = Literal["folded", "exact"]


@dataclass(frozen=True, slots=True)
class Compression:
    """Settings of compression.

    Attributes:
        scheme: by which gradients are summed along dp_replicate, such as "none" or "int8"; with "auto" `Trainer`
            chooses for each bucket.
        residuals: what checkpoints keep of what compression holds back: "folded" is one copy, the ranks' sum; "exact"
            is each rank's own beside it, with which a restart at the same world size and plan goes on bit for bit.
        shard: by which gradients are summed along dp_shard: "none", "int8" or "int4".
        gather: by which parameters are gathered along dp_shard: "none" or "int8".
        outer: how replicas meet that step by themselves; the scheme is then of what they exchange at meetings. None:
            they sum gradients at every step.

    Raises:
        ValueError: there is no such scheme or kind of residuals, or not along dp_shard or at meetings; says what there
            is.
    """

    scheme: str = "none"
    residuals: Residuals = "folded"
    shard: str = "none"
    gather: str = "none"
    outer: OuterNesterov | None = None

    def __post_init__(self) -> None:
        if not self.adapts:
            parse_scheme(self.scheme)
        elif self.outer is not None:
            raise ValueError(
                "compress='auto' goes by what each step's exchange costs, and with sync_every= steps have none; name a "
                "scheme, such as compress='int8'"
            )
        if self.residuals not in ("folded", "exact"):
            raise ValueError(f"residuals must be 'folded' or 'exact', got {self.residuals!r}")
        if self.shard not in ("none", *SHARD_CODECS):
            parse_scheme(self.shard)
            raise ValueError(
                f"compress_shard={self.shard!r} is not possible: along dp_shard nothing is fed back, since a residual "
                "would be as large as the whole model on every rank, so that only codes that are right in the mean "
                f"will do: {', '.join(SHARD_CODECS)}; {self.shard} is possible along dp_replicate, by compress="
            )

        if self.gather not in ("none", *GATHER_CODECS):
            raise ValueError(
                f"compress_gather={self.gather!r} is not possible: parameters are gathered as they are ('none') or as "
                f"{', '.join(GATHER_CODECS)}"
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


def check_possible(plan: Plan, compression: Compression) -> None:
    """Raise `PlanRefused` where these settings cannot go with the plan, before anything is divided."""
    if compression.outer is not None and plan.dp_replicate != plan.world_size:
        raise PlanRefused(
            f"sync_every={compression.outer.every} is not possible with the plan {plan}: only replicas that are whole "
            "in one process each can step by themselves; use a plan that only replicates, or leave out sync_every"
        )


def replica_exchange(plan: Plan, world: World, compression: Compression, seed: int) -> CompressedExchange | None:
    """What sums along dp_replicate with compression, or at meetings; None where neither is asked for. Collective.

    Raises:
        PeerLost: another rank is gone.
    """
    if not compression.on and compression.outer is None:
        return None
    group = _own_group(plan, world)
    sums = fastest_sums(world, group)
    return CompressedExchange(
        group,
        compression.first_scheme,
        seed=seed,
        device=world.device,
        sums=sums,
        adapts=compression.adapts,
    )


def shard_sums(
    mesh: Mesh,
    roots: Sequence[nn.Module],
    held: Sequence[tuple[str, nn.Parameter]],
    compression: Compression,
    seed: int,
) -> ShardSums | None:
    """What sums gradients of `held` along dp_shard with compression; None where there is none. Collective.

    Raises:
        PlanRefused: the plan has tp, too.
        PeerLost: another rank is gone.
    """
    plan = mesh.plan
    codec = SHARD_CODECS.get(compression.shard)
    if codec is None or plan.dp_shard == 1:
        return None
    if plan.tp > 1:
        # A unit's buffer has both what tp divides and what its ranks hold alike, and a block's code depends on both.
        raise PlanRefused(
            f"compress_shard={compression.shard!r} is not possible with tp={plan.tp}: parameters that all tp ranks "
            "hold would come apart; leave out compress_shard, or use tp=1"
        )
    sums = ShardSums(codec, seed, _shards_on_hosts(mesh))
    sums.take_over(roots, held, plan.dp_shard)
    return sums


def shard_gathers(mesh: Mesh, roots: Sequence[nn.Module], compression: Compression) -> ShardGathers | None:
    """What gathers parameters along dp_shard as codes; None where they are gathered as they are. Collective.

    Raises:
        PlanRefused: the plan has tp, too, or parameters are gathered together that are of several kinds.
        PeerLost: another rank is gone.
    """
    plan = mesh.plan
    if compression.gather == "none" or plan.dp_shard == 1:
        return None
    if plan.tp > 1:
        raise PlanRefused(
            f"compress_gather={compression.gather!r} is not possible with tp={plan.tp}: shards of what tp divides lie "
            "in a unit's buffer in another way than is known here; leave out compress_gather, or use tp=1"
        )
    gathers = ShardGathers(plan.dp_shard, _shards_on_hosts(mesh))
    gathers.take_over(roots)
    return gathers


def _shards_on_hosts(mesh: Mesh) -> Arrangement:
    ranks = dist.get_process_group_ranks(mesh.group("dp_shard"))
    return Arrangement.of(ranks, Collectives(mesh.world).gather(host_name()))


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
