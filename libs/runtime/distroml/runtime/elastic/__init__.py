"""Generations in one process: whichever rank dies, the others stay and go on."""

from distroml.runtime.elastic.collectives import Collectives, Pending, check_sums, communication, heard, hearing
from distroml.runtime.elastic.errors import GenerationLeft, NoGeneration, PeerLost, is_communication_error
from distroml.runtime.elastic.membership import Membership
from distroml.runtime.elastic.world import World

__all__ = [
    "Collectives",
    "GenerationLeft",
    "Membership",
    "NoGeneration",
    "PeerLost",
    "Pending",
    "World",
    "check_sums",
    "communication",
    "heard",
    "hearing",
    "is_communication_error",
]
