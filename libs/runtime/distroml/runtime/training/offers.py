"""What each scheme would cost each bucket here: bytes by its own account, rounds and codec time by trying it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch

from distroml.runtime.compress import Layout, Piece, parse_spec
from distroml.runtime.compress.control import LADDER, NONE, Bucket, Offer, Setting
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.parallel.agreement import told_of
from distroml.runtime.parallel.buckets import BucketSpec
from distroml.runtime.profile.codecs import gradients_of, tried

# A backward pass takes about two thirds of a step's computing; its buckets get ready one after the other.
_FORWARD = 1 / 3
# About as many elements as a bucket has: fewer lie in a processor's caches, and are coded faster than a bucket is.
_TRIED = 1 << 22
_TRIES = 2


def layout_of(spec: BucketSpec) -> Layout:
    """A bucket as schemes see it."""
    return Layout(spec.numel, tuple(Piece(one.name, one.offset, one.shape) for one in spec.segments))


def codec_costs(
    layouts: Sequence[Layout], world_size: int, device: torch.device, elements: int = _TRIED
) -> dict[str, tuple[int, float]]:
    """Rounds and seconds per element of every scheme of the ladder, measured now on about `elements` elements.

    The seconds are of all that a rank computes for an exchange, norms that are watched among it. Those of PowerSGD
    grow as its rank does: between the least and the greatest rank they are not tried.
    """
    largest = max(layouts, key=lambda layout: layout.numel)
    pieces = [piece for piece in largest.pieces if piece.offset + piece.numel <= elements] or list(largest.pieces[:1])
    layout = Layout(max(piece.offset + piece.numel for piece in pieces), tuple(pieces))
    found: dict[str, tuple[int, float]] = {NONE: (1, 0.0)}
    watched_s, gradients = _watched_s(layout.numel, device), gradients_of(layout, device)
    ranks = {rung.scheme: rank for rung in LADDER if (rank := parse_spec(rung.scheme).rank)}
    ends = sorted(ranks, key=ranks.__getitem__)[:: max(len(ranks) - 1, 1)]
    for rung in LADDER[1:]:
        if rung.scheme not in ranks or rung.scheme in ends:
            rounds, spent_s = tried(parse_scheme(rung.scheme), layout, world_size, gradients)
            found[rung.scheme] = (rounds, (spent_s + watched_s) / layout.numel)
    (rounds, low_s), (_, high_s) = (found[scheme] for scheme in ends)
    low, high = (ranks[scheme] for scheme in ends)
    for scheme, rank in ranks.items():
        found.setdefault(scheme, (rounds, low_s + (high_s - low_s) * (rank - low) / (high - low)))
    return {rung.scheme: found[rung.scheme] for rung in LADDER}


def _watched_s(numel: int, device: torch.device) -> float:
    """Seconds of what ranks agree on before an exchange of so many elements, and as many that are kept."""
    flat, kept, clock = torch.ones(numel, device=device), torch.ones(numel, device=device), time.thread_time
    spent: list[float] = []
    for _ in range(_TRIES):
        started = clock()
        told_of(flat, [kept])
        spent.append(clock() - started)
    return min(spent)


def setting_of(
    layouts: Sequence[Layout],
    world_size: int,
    costs: Mapping[str, tuple[int, float]],
    codec_slows: float,
    *,
    late: Sequence[bool] = (),
    microbatches: int = 1,
) -> Setting:
    """The buckets with all that may be chosen for them, and when their gradients are there.

    They get ready in order, evenly over the step's last backward pass, which is the longer part of one microbatch.

    Args:
        layouts: of the buckets, in the order in which they are exchanged.
        world_size: ranks that exchange them.
        costs: of each scheme, as `codec_costs` finds them.
        codec_slows: see `Setting`.
        late: of each bucket, whether its exchange begins only after the passes; none where it is left out.
        microbatches: of a step on one rank.
    """
    late = late or [False] * len(layouts)
    window = (1 - _FORWARD) / max(microbatches, 1)
    early = [0 if waits else layout.numel for layout, waits in zip(layouts, late, strict=True)]
    whole = sum(early) or 1
    buckets: list[Bucket] = []
    for layout, waits, done in zip(layouts, late, accumulate(early), strict=True):
        offers = [
            Offer(scheme, parse_scheme(scheme).sent_bytes(layout, world_size), rounds, per_element_s * layout.numel)
            for scheme, (rounds, per_element_s) in costs.items()
        ]
        buckets.append(Bucket(layout.numel, 1.0 if waits else 1 - window * (1 - done / whole), tuple(offers)))
    return Setting(tuple(buckets), codec_slows=codec_slows)
