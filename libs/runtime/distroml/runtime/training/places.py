"""Controllers under a plan that divides the model: one for each place, whose buckets are no other place's.

A place is what ranks that differ along dp_replicate only have in common. Its changes are recorded, and its controller's
state is kept, apart from those of the others: number 0 is another bucket on another stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from distroml.planner import Plan
from distroml.runtime.compress.control import Record
from distroml.runtime.elastic import Collectives

Recorded = dict[str, Record]
"""What is recorded of a whole training, by place."""


def place_of(plan: Plan, rank: int) -> str:
    """Names the place of `rank`: "tp1of2-pp0of2"; empty where every rank has the whole model."""
    at = plan.coordinate(rank)
    return "-".join(
        f"{axis}{at[axis]}of{size}" for axis, size in plan.mesh.items() if axis != "dp_replicate" and size > 1
    )


def leads(plan: Plan, rank: int) -> bool:
    """Whether `rank` writes what its place records, and tells of it."""
    return plan.coordinate(rank)["dp_replicate"] == 0


def share(recorded: Recorded, collectives: Collectives) -> None:
    """Let every rank know what any of them has recorded, of whichever place. Collective. Raises `PeerLost`.

    Of several records of a place the `newest` counts, of those the lowest rank's: the same one everywhere.
    """
    everyones = collectives.gather(recorded)
    for place in {place for known in everyones for place in known}:
        recorded[place] = newest(known[place] for known in everyones if place in known)


def newest(records: Iterable[Record]) -> Record:
    """The first of the newest generation, since what an older one recorded may have been given up.

    Of those it is the longest, since a rank may have been lost before it decided.
    """
    return max(records, key=lambda one: (one.generation, len(one.changes)))


def pack(kept: str, place: str, collectives: Collectives) -> str:
    """What a checkpoint has of all controllers, of which this rank's gave `kept`. Collective where there are several.

    Raises:
        PeerLost: another rank is gone.
    """
    if not place:
        return kept
    everyones: Mapping[str, str] = dict(collectives.gather((place, kept)))
    return msgspec.json.encode(everyones).decode()


def unpack(packed: str, place: str) -> str:
    """What `pack` was given at `place`; empty where a checkpoint has nothing of it, or was saved under another plan."""
    if not place:
        return packed
    try:
        return msgspec.json.decode(packed, type=dict[str, str]).get(place, "")
    except msgspec.MsgspecError:
        return ""
