"""Gradient compression: schemes as rounds of payloads with explicit state."""

from distroml.planner.compression import Spec, UnknownScheme, parse_spec
from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.layout import Layout, Piece
from distroml.runtime.compress.parse import parse_scheme, scheme_of
from distroml.runtime.compress.scheme import How, Round, Scheme, State, TakenBack, Turn
from distroml.runtime.compress.schemes import succeeded
from distroml.runtime.compress.simulate import NotInStep, SimulatedRanks

__all__ = [
    "Codec",
    "How",
    "Layout",
    "NotInStep",
    "Piece",
    "Round",
    "Scheme",
    "SimulatedRanks",
    "Spec",
    "State",
    "TakenBack",
    "Turn",
    "UnknownScheme",
    "parse_scheme",
    "parse_spec",
    "scheme_of",
    "succeeded",
]
