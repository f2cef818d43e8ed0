"""What may happen to the pool's slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from distroml.events import Decider, Rejection
from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.ledger.state import (
    AttemptStopped,
    Event,
    Ledger,
    NodeWithdrawn,
    Offer,
    Share,
    SlotsAssigned,
    SlotsFreed,
    SlotsLeaving,
    SlotsOffered,
    evolve,
)
from distroml.scheduler.domain.spec import Placement, Slot

# ---- commands


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferSlots:
    """The node has these slots and takes gangs."""

    node: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawNode:
    """The node takes no more gangs; `lost`: nothing runs there that counts any more."""

    node: str
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Give these slots to a new attempt."""

    job: str
    attempt: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reassign:
    """Let a running attempt have this gang: new slots are assigned, surplus ones leave."""

    job: str
    attempt: int
    placement: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteStopped:
    """The agent says that no process of the attempt is left on the node."""

    job: str
    attempt: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLeft:
    """The agent says that no process is left on slots that left the gang."""

    job: str
    attempt: int
    node: str
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """Take back what the attempt holds on the node: it is stopped there, or the node is lost."""

    job: str
    attempt: int
    node: str


Command: TypeAlias = OfferSlots | WithdrawNode | Assign | Reassign | NoteStopped | NoteLeft | Free

# ---- decide


def decide(ledger: Ledger, command: Command) -> tuple[Event, ...]:
    """The events that `command` leads to.

    Raises:
        Rejection: a slot is taken or not offered, or the attempt does not hold what the command says.
    """
    match command:
        case OfferSlots(node=node, slots=slots):
            if ledger.offers.get(node) == Offer(slots):
                return ()
            return (SlotsOffered(node=node, slots=slots),)
        case WithdrawNode(node=node, lost=lost):
            offer = ledger.offers.get(node)
            if offer is None or (not offer.open and offer.present != lost):
                return ()
            return (NodeWithdrawn(node=node, lost=lost),)
        case Assign(job=job, attempt=attempt, placement=placement):
            if ledger.holding(job, attempt) is not None:
                return ()
            _refuse_unavailable(ledger, placement)
            return (SlotsAssigned(job=job, attempt=attempt, placement=placement),)
        case Reassign():
            return _reassign(ledger, command)
        case NoteStopped(job=job, attempt=attempt, node=node):
            share = _share(ledger, job, attempt, node)
            if share is None or share.stopped:
                return ()
            if not share.slots:
                # A resize took the node out of the gang: nothing more has to be decided about it.
                return (SlotsFreed(job=job, attempt=attempt, node=node, slots=share.leaving),)
            return (AttemptStopped(job=job, attempt=attempt, node=node),)
        case NoteLeft(job=job, attempt=attempt, node=node, slots=slots):
            share = _share(ledger, job, attempt, node)
            left = tuple(slot for slot in slots if share is not None and slot in share.leaving)
            return (SlotsFreed(job=job, attempt=attempt, node=node, slots=left),) if left else ()
        case Free(job=job, attempt=attempt, node=node):
            return _free(ledger, job, attempt, node)
        case _:
            assert_never(command)


def _reassign(ledger: Ledger, command: Reassign) -> tuple[Event, ...]:
    job, attempt = command.job, command.attempt
    holding = ledger.holding(job, attempt)
    if holding is None:
        raise Rejection(reasons.NOT_HELD, f"attempt {attempt} of job {job} holds no slot that could be changed")
    new, old = _pairs(command.placement), _pairs(holding.gang)
    joining, leaving = _placement(new - old), _placement(old - new)
    _refuse_unavailable(ledger, joining)
    for part in joining:
        share = holding.share(part.node)
        if share is not None and (share.stopped or not share.slots):
            # Its report of having stopped, late or still to come, must not be taken for one about the new slots.
            raise Rejection(reasons.STILL_RUNNING, f"attempt {attempt} of job {job} is leaving {part.node}")
    events: list[Event] = []
    if joining:
        events.append(SlotsAssigned(job=job, attempt=attempt, placement=joining))
    if leaving:
        events.append(SlotsLeaving(job=job, attempt=attempt, placement=leaving))
    return tuple(events)


def _free(ledger: Ledger, job: str, attempt: int, node: str) -> tuple[Event, ...]:
    share = _share(ledger, job, attempt, node)
    if share is None:
        return ()
    offer = ledger.offers.get(node)
    if not share.stopped and (offer is None or offer.present):
        raise Rejection(reasons.STILL_RUNNING, f"attempt {attempt} of job {job} may still run on {node}", node=node)
    return (SlotsFreed(job=job, attempt=attempt, node=node, slots=(*share.slots, *share.leaving)),)


def _refuse_unavailable(ledger: Ledger, placement: tuple[Placement, ...]) -> None:
    held = ledger.held()
    for node, slot in sorted(_pairs(placement)):
        offer = ledger.offers.get(node)
        if offer is None or not offer.open or not offer.present or slot not in {offered.id for offered in offer.slots}:
            raise Rejection(
                reasons.SLOT_NOT_OFFERED, f"slot {slot} of {node} is not open to gangs", node=node, slot=slot
            )
        if (node, slot) in held:
            raise Rejection(
                reasons.SLOT_TAKEN, f"slot {slot} of {node} is held by {held[node, slot]}", node=node, slot=slot
            )


def _share(ledger: Ledger, job: str, attempt: int, node: str) -> Share | None:
    holding = ledger.holding(job, attempt)
    return None if holding is None else holding.share(node)


def _pairs(placement: tuple[Placement, ...]) -> set[tuple[str, str]]:
    return {(part.node, slot) for part in placement for slot in part.slots}


def _placement(pairs: set[tuple[str, str]]) -> tuple[Placement, ...]:
    nodes = sorted({node for node, _ in pairs})
    return tuple(Placement(node, tuple(sorted(slot for at, slot in pairs if at == node))) for node in nodes)


LEDGER: Decider[Ledger, Command, Event] = Decider(initial=Ledger(), decide=decide, evolve=evolve)
