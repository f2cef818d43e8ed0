"""The pure core of the catalogue: no clock, no randomness, no I/O."""

from distroml.checkpoint.domain.decide import CATALOGUE
from distroml.checkpoint.domain.state import Catalogue

__all__ = ["CATALOGUE", "Catalogue"]
