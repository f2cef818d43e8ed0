"""Where a gang goes: all of it at once, on as few nodes as possible, or nowhere, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.spec import Placement, Slot, WorkerRange, gang_size

Slots: TypeAlias = Mapping[str, tuple[Slot, ...]]

# A gang runs on one kind of slot; the first of these that can take it.
KINDS = ("cuda", "cpu")


@dataclass(frozen=True, slots=True)
class Placed:
    """The gang fits here."""

    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The gang does not fit now. `ever`: it would, if nothing else ran on the nodes there are."""

    reason: str
    message: str
    ever: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


def place(workers: WorkerRange, free: Slots, capacity: Slots) -> Placed | Refused:
    """Place a gang on `free` slots.

    As many workers as the range and the slots allow; for that many, the fewest nodes; among equals the tightest
    fit, so that large holes stay whole; then the node's name, so that equal snapshots give equal answers.

    Args:
        workers: how many, and how many on each node.
        free: slots nobody holds, by node, of nodes that take gangs.
        capacity: all slots of these nodes, for telling "not now" from "not here".
    """
    if gang := _best_gang(workers, free):
        return Placed(gang)
    if not capacity:
        return Refused(reasons.NO_NODES, "no node is ready to take work", ever=False)
    free_slots, total = _count(free), _count(capacity)
    counts = {"free": str(free_slots), "total": str(total), "min_workers": str(workers.min)}
    if not _best_gang(workers, capacity):
        return Refused(reasons.EXCEEDS_CAPACITY, _exceeds(workers, capacity), ever=False, metadata=counts)
    if workers.per_node and free_slots >= workers.min:
        message = f"needs nodes with {workers.per_node} free slots each; {free_slots} are free, but spread otherwise"
        return Refused(reasons.WAITING_FOR_RESOURCES, message, metadata=counts)
    message = f"needs {workers.min} free slots, {free_slots} of {total} are free"
    return Refused(reasons.WAITING_FOR_SLOTS, message, metadata=counts)


def regang(workers: WorkerRange, gang: tuple[Placement, ...], free: Slots, kind: str) -> Placed | Refused | None:
    """The gang of a running attempt for a changed range, keeping what it has where that is possible.

    Args:
        workers: the range it shall be in.
        gang: what it has.
        free: slots nobody holds, by node, without the nodes that the gang is leaving.
        kind: the kind of its slots.

    Returns:
        None where the gang may stay as it is for now.
    """
    size, step = gang_size(gang), workers.per_node or 1
    if size > workers.max:
        return Placed(_shrunk(gang, workers.max, workers.per_node))
    grown = _grown(gang, workers.max // step * step, _of_kind(free, kind), workers.per_node)
    if gang_size(grown) < workers.min:
        message = f"needs {workers.min} workers and has {size}; {_count(_of_kind(free, kind))} more slots are free"
        return Refused(reasons.WAITING_FOR_SLOTS, message)
    return Placed(grown) if gang_size(grown) > size else None


# ---- new gangs


def _best_gang(workers: WorkerRange, slots: Slots) -> tuple[Placement, ...]:
    gangs = [_gang(workers, _of_kind(slots, kind)) for kind in KINDS]
    return next((gang for gang in gangs if gang), ())


def _gang(workers: WorkerRange, slots: Slots) -> tuple[Placement, ...]:
    per_node = workers.per_node
    taken = _whole_nodes(workers.max // per_node, per_node, slots) if per_node else _fewest_nodes(workers.max, slots)
    return taken if gang_size(taken) >= workers.min else ()


def _whole_nodes(nodes: int, per_node: int, slots: Slots) -> tuple[Placement, ...]:
    fitting = sorted((len(offered), node) for node, offered in slots.items() if len(offered) >= per_node)
    return _placement((node, _first(slots[node], per_node)) for _, node in fitting[:nodes])


def _fewest_nodes(wanted: int, slots: Slots) -> tuple[Placement, ...]:
    taken: list[tuple[str, tuple[str, ...]]] = []
    left = dict(slots)
    while wanted and left:
        # The tightest node that takes all the rest, else the largest one.
        enough = [(len(offered), node) for node, offered in left.items() if len(offered) >= wanted]
        node = min(enough)[1] if enough else min(left, key=lambda name: (-len(left[name]), name))
        part = _first(left.pop(node), wanted)
        taken.append((node, part))
        wanted -= len(part)
    return _placement(taken)


# ---- changed gangs


def _shrunk(gang: tuple[Placement, ...], size: int, per_node: int) -> tuple[Placement, ...]:
    surplus = gang_size(gang) - size
    kept: list[tuple[str, tuple[str, ...]]] = []
    # Smallest parts go first: whole nodes become free, and few of them have to change.
    for part in sorted(gang, key=lambda part: (len(part.slots), part.node)):
        if surplus <= 0:
            drop = 0
        elif per_node:
            drop = len(part.slots)
        else:
            drop = min(surplus, len(part.slots))
        surplus -= drop
        if drop < len(part.slots):
            kept.append((part.node, part.slots[: len(part.slots) - drop]))
    return _placement(kept)


def _grown(gang: tuple[Placement, ...], size: int, free: Slots, per_node: int) -> tuple[Placement, ...]:
    parts = {part.node: part.slots for part in gang}
    wanted = size - gang_size(gang)
    others = dict(free)
    for node in sorted(parts):
        offered = others.pop(node, ())
        if not per_node and wanted > 0:
            more = _first(offered, wanted)
            parts[node] = tuple(sorted((*parts[node], *more)))
            wanted -= len(more)
    if wanted > 0:
        added = _whole_nodes(wanted // per_node, per_node, others) if per_node else _fewest_nodes(wanted, others)
        parts |= {part.node: part.slots for part in added}
    return _placement(parts.items())


# ---- small things


def _of_kind(slots: Slots, kind: str) -> Slots:
    chosen = {node: tuple(slot for slot in offered if slot.kind == kind) for node, offered in slots.items()}
    return {node: offered for node, offered in chosen.items() if offered}


def _first(slots: tuple[Slot, ...], count: int) -> tuple[str, ...]:
    return tuple(slot.id for slot in slots[:count])


def _placement(parts: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[Placement, ...]:
    return tuple(Placement(node, slots) for node, slots in sorted(parts))


def _count(slots: Slots) -> int:
    return sum(len(offered) for offered in slots.values())


def _exceeds(workers: WorkerRange, capacity: Slots) -> str:
    total, largest = _count(capacity), max(len(offered) for offered in capacity.values())
    if workers.per_node > largest:
        return f"wants {workers.per_node} workers on each node, the largest ready node has {largest} slots"
    if workers.per_node:
        fitting = sum(len(offered) >= workers.per_node for offered in capacity.values())
        return (
            f"wants {workers.min} workers, {workers.per_node} per node; only {fitting} ready nodes have as many slots"
        )
    kinds = {slot.kind for offered in capacity.values() for slot in offered}
    return f"wants {workers.min} workers, all ready nodes together have {total} slots" + (
        f" of {len(kinds)} kinds" if len(kinds) > 1 else ""
    )
