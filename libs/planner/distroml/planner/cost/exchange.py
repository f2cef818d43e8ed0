"""Seconds of what ranks exchange that hold parts of parameters: gathered units, scattered gradients."""

from __future__ import annotations

from dataclasses import dataclass

from distroml.planner.cost.collectives import exposed_s, gather_s
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
    scatters_s: float,
    times: int,
    again: bool,
    overlap: float,
) -> float:
    """Seconds of a step that gathers of parameters and scatters of gradients along dp_shard stand uncovered.

    A unit at a time is gathered, `again` in the backward pass where it was freed, and its gradients are scattered, in
    `scatters_s` seconds for all: `times` in a step. The first gather and the last scatter have nothing to hide behind.
    """
    if not route:
        return 0.0
    units = max(1, load.units)
    gathers = gather_s(route, load.elements * gather_bytes, count=units)
    first, last = gathers / units, scatters_s / units
    forward = first + exposed_s(gathers - first, load.forward_s, overlap)
    backward = last + exposed_s((gathers if again else 0.0) + scatters_s - last, load.backward_s, overlap)
    return (forward + backward) * times
