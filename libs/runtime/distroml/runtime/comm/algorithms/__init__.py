"""Sums over the ranks of an axis: flat or hierarchical, whichever was measured to be faster for a size."""

from distroml.runtime.comm.algorithms.allreduce import AllReduce, Flat, Hierarchical
from distroml.runtime.comm.algorithms.arrangement import Arrangement, host_name
from distroml.runtime.comm.algorithms.choice import Choice, Timed
from distroml.runtime.comm.algorithms.chosen import Chosen, all_reduce_along

__all__ = [
    "AllReduce",
    "Arrangement",
    "Choice",
    "Chosen",
    "Flat",
    "Hierarchical",
    "Timed",
    "all_reduce_along",
    "host_name",
]
