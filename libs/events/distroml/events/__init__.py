"""Ids, positions, deciders and recorded events: pure, standard library only."""

from distroml.events.decider import Decider, Given, Rejection, given
from distroml.events.ids import fresh_id, is_name, matches, stream
from distroml.events.position import Position
from distroml.events.record import Codec, Context, NewEvent, Projection, Recorded, UnknownEvent

__all__ = [
    "Codec",
    "Context",
    "Decider",
    "Given",
    "NewEvent",
    "Position",
    "Projection",
    "Recorded",
    "Rejection",
    "UnknownEvent",
    "fresh_id",
    "given",
    "is_name",
    "matches",
    "stream",
]
