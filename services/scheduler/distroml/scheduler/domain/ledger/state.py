"""What is known of the pool: offered slots, who holds them, the private events that tell it, and their fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from distroml.scheduler.domain.spec import Placement, Slot

# ---- state


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node brings. `open`: it takes new gangs. `present`: it is not lost."""

    slots: tuple[Slot, ...]
    open: bool = True
    present: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Share:
    """What an attempt holds on one node.

    Attributes:
        slots: where its workers run.
        leaving: slots that left the gang by a resize and may still have a process.
        stopped: the agent said that no process of the attempt is left on the node.
    """

    node: str
    slots: tuple[str, ...]
    leaving: tuple[str, ...] = ()
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """What one attempt of a job holds; `shares` are in the order of the nodes' names."""

    job: str
    attempt: int
    shares: tuple[Share, ...]

    @property
    def gang(self) -> tuple[Placement, ...]:
        """The slots where its workers run."""
        return tuple(Placement(share.node, share.slots) for share in self.shares if share.slots)

    def share(self, node: str) -> Share | None:
        """What it holds on `node`."""
        return next((share for share in self.shares if share.node == node), None)


@dataclass(frozen=True, slots=True)
class Ledger:
    """State of the stream `scheduler/pool/default`. Holdings are by `holding_key`."""

    offers: Mapping[str, Offer] = field(default_factory=dict[str, Offer])
    holdings: Mapping[str, Holding] = field(default_factory=dict[str, Holding])

    def held(self) -> dict[tuple[str, str], str]:
        """(node, slot) to the job that holds it."""
        return {
            (share.node, slot): holding.job
            for holding in self.holdings.values()
            for share in holding.shares
            for slot in (*share.slots, *share.leaving)
        }

    def free(self) -> dict[str, tuple[Slot, ...]]:
        """Slots that can be given away now, by node; nodes without one are left out."""
        held = self.held()
        free = {
            node: tuple(slot for slot in offer.slots if (node, slot.id) not in held)
            for node, offer in self.offers.items()
            if offer.open and offer.present
        }
        return {node: slots for node, slots in free.items() if slots}

    def capacity(self) -> dict[str, tuple[Slot, ...]]:
        """All slots of the nodes that take gangs, whoever holds them now."""
        return {node: offer.slots for node, offer in self.offers.items() if offer.open and offer.present}

    def holding(self, job: str, attempt: int) -> Holding | None:
        """What the attempt holds, or None."""
        return self.holdings.get(holding_key(job, attempt))


def holding_key(job: str, attempt: int) -> str:
    """Names a holding."""
    return f"{job}.{attempt}"


# ---- events: private, stored as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsOffered:
    """The node's slots are in the pool and open to gangs."""

    node: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWithdrawn:
    """The node is closed to new gangs, or gone."""

    node: str
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsAssigned:
    """An attempt holds these slots besides those that it held before."""

    job: str
    attempt: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsLeaving:
    """These slots left the gang and are held until nothing runs on them."""

    job: str
    attempt: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStopped:
    """Nothing of the attempt runs on the node any more."""

    job: str
    attempt: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsFreed:
    """The slots can be given to others."""

    job: str
    attempt: int
    node: str
    slots: tuple[str, ...]


Event: TypeAlias = SlotsOffered | NodeWithdrawn | SlotsAssigned | SlotsLeaving | AttemptStopped | SlotsFreed


# ---- evolve


def evolve(ledger: Ledger, event: Event) -> Ledger:
    """The ledger after `event`."""
    match event:
        case SlotsOffered(node=node, slots=slots):
            return replace(ledger, offers={**ledger.offers, node: Offer(slots)})
        case NodeWithdrawn(node=node, lost=lost):
            offer = replace(ledger.offers[node], open=False, present=not lost)
            return replace(ledger, offers={**ledger.offers, node: offer})
        case SlotsAssigned(job=job, attempt=attempt, placement=placement):
            holding = ledger.holding(job, attempt) or Holding(job, attempt, ())
            return _with(ledger, replace(holding, shares=tuple(sorted(_joined(holding, placement)))))
        case SlotsLeaving(job=job, attempt=attempt, placement=placement):
            holding = ledger.holdings[holding_key(job, attempt)]
            return _with(ledger, replace(holding, shares=tuple(_left(holding, placement))))
        case AttemptStopped(job=job, attempt=attempt, node=node):
            holding = ledger.holdings[holding_key(job, attempt)]
            shares = tuple(replace(s, stopped=True) if s.node == node else s for s in holding.shares)
            return _with(ledger, replace(holding, shares=shares))
        case SlotsFreed(job=job, attempt=attempt, node=node, slots=slots):
            holding = ledger.holdings[holding_key(job, attempt)]
            return _with(ledger, replace(holding, shares=tuple(_freed(holding, node, slots))))
        case _:
            assert_never(event)


def _with(ledger: Ledger, holding: Holding) -> Ledger:
    holdings = dict(ledger.holdings)
    key = holding_key(holding.job, holding.attempt)
    if holding.shares:
        holdings[key] = holding
    else:
        holdings.pop(key, None)
    return replace(ledger, holdings=holdings)


def _joined(holding: Holding, placement: tuple[Placement, ...]) -> Iterator[Share]:
    joining = {part.node: part.slots for part in placement}
    for share in holding.shares:
        yield replace(share, slots=tuple(sorted({*share.slots, *joining.pop(share.node, ())})))
    for node, slots in sorted(joining.items()):
        yield Share(node, tuple(sorted(slots)))


def _left(holding: Holding, placement: tuple[Placement, ...]) -> Iterator[Share]:
    leaving = {part.node: set(part.slots) for part in placement}
    for share in holding.shares:
        gone = leaving.get(share.node, set())
        yield replace(
            share,
            slots=tuple(slot for slot in share.slots if slot not in gone),
            leaving=tuple(sorted({*share.leaving, *gone})),
        )


def _freed(holding: Holding, node: str, slots: tuple[str, ...]) -> Iterator[Share]:
    for share in holding.shares:
        if share.node != node:
            yield share
            continue
        kept = tuple(slot for slot in share.slots if slot not in slots)
        leaving = tuple(slot for slot in share.leaving if slot not in slots)
        if kept or leaving:
            yield replace(share, slots=kept, leaving=leaving)
