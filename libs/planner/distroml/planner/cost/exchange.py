"""Seconds of what data-parallel ranks exchange: gathered units, scattered gradients, sums of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distroml.planner.cost.collectives import all_reduce_s, exposed_s, gather_s
from distroml.planner.topology import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoad:
    """What one rank holds and computes, as far as exchanges depend on it.

    Attributes:
        elements: trainable elements on its tp rank, before sharding.
        units: that are gathered one after the other.
        forward_s: of one microbatch.
        backward_s: of one microbatch.
    """

    elements: float
    units: int
    forward_s: float
    backward_s: float


def shard_s(
    route: Route,
    load: StageLoad,
    *,
    gather_bytes: int,
    scatter_bytes: int,
    times: int,
    again: bool,
    overlap: float,
) -> float:
    """Seconds of a step that gathers of parameters and scatters of gradients along dp_shard stand uncovered.

    A unit at a time is gathered, `again` in the backward pass where it was freed, and its gradients are scattered:
    `times` in a step. The first gather and the last scatter have nothing to hide behind.
    """
    if not route:
        return 0.0
    units = max(1, load.units)
    gathers = gather_s(route, load.elements * gather_bytes, count=units)
    scatters = gather_s(route, load.elements * scatter_bytes, count=units, scatter=True)
    first, last = gathers / units, scatters / units
    forward = first + exposed_s(gathers - first, load.forward_s, overlap)
    backward = last + exposed_s((gathers if again else 0.0) + scatters - last, load.backward_s, overlap)
    return (forward + backward) * times


def replicate_s(
    route: Route,
    bytes_: float,
    *,
    bucket_bytes: float,
    compression: float,
    codec_s_per_byte: float,
    window_s: float,
    overlap: float,
) -> float:
    """Seconds that the sum of gradients along dp_replicate outlasts the backward pass of the last microbatch.

    The last bucket fills at the pass's very end and stands uncovered.
    """
    if not route or not bytes_:
        return 0.0
    buckets = max(1, math.ceil(bytes_ / bucket_bytes))
    whole = all_reduce_s(route, bytes_ / compression, count=buckets) + bytes_ * codec_s_per_byte
    last = whole / buckets
    return last + exposed_s(whole - last, window_s, overlap)
