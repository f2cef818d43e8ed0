"""Gradient compression: schemes as rounds of payloads with explicit state."""

from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.layout import Layout, Piece
from distroml.runtime.compress.scheme import How, Round, Scheme, State, Turn

__all__ = ["Codec", "How", "Layout", "Piece", "Round", "Scheme", "State", "Turn"]
