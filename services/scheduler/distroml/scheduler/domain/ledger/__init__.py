"""The pool ledger: which slots there are and who holds them. The one place where a slot is given away.

A slot is held from its assignment until the agent said that no process of the attempt is left on it, or until its
node is lost. That holds for finished and preempted jobs too, so a slot is never in two gangs.
"""

from distroml.scheduler.domain.ledger.decide import (
    LEDGER,
    Assign,
    Command,
    Free,
    NoteLeft,
    NoteStopped,
    OfferSlots,
    Reassign,
    WithdrawNode,
    decide,
)
from distroml.scheduler.domain.ledger.state import (
    AttemptStopped,
    Event,
    Holding,
    Ledger,
    NodeWithdrawn,
    Offer,
    Share,
    SlotsAssigned,
    SlotsFreed,
    SlotsLeaving,
    SlotsOffered,
    evolve,
    holding_key,
)

__all__ = [
    "LEDGER",
    "Assign",
    "AttemptStopped",
    "Command",
    "Event",
    "Free",
    "Holding",
    "Ledger",
    "NodeWithdrawn",
    "NoteLeft",
    "NoteStopped",
    "Offer",
    "OfferSlots",
    "Reassign",
    "Share",
    "SlotsAssigned",
    "SlotsFreed",
    "SlotsLeaving",
    "SlotsOffered",
    "WithdrawNode",
    "decide",
    "evolve",
    "holding_key",
]
