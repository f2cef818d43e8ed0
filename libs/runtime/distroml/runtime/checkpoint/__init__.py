"""Checkpoints: saved beside the step, content-addressed, verified on load, restored at any world size."""

from distroml.runtime.checkpoint.agreement import Agreed, Agreement
from distroml.runtime.checkpoint.errors import CheckpointError, CorruptChunk, StateMismatch, UnsupportedState
from distroml.runtime.checkpoint.layout import Rows
from distroml.runtime.checkpoint.planner import PlainLoadPlanner, PlainSavePlanner
from distroml.runtime.checkpoint.reader import ManifestReader
from distroml.runtime.checkpoint.saver import Saver, ShardResult
from distroml.runtime.checkpoint.state import Restored, capture, load_into, restore
from distroml.runtime.checkpoint.whole import ANCHOR, NOTHING_ELSE, OUTER, OWN, RESIDUALS, Whole
from distroml.runtime.checkpoint.writer import ManifestWriter, SaveTarget

__all__ = [
    "ANCHOR",
    "NOTHING_ELSE",
    "OUTER",
    "OWN",
    "RESIDUALS",
    "Agreed",
    "Agreement",
    "CheckpointError",
    "CorruptChunk",
    "ManifestReader",
    "ManifestWriter",
    "PlainLoadPlanner",
    "PlainSavePlanner",
    "Restored",
    "Rows",
    "SaveTarget",
    "Saver",
    "ShardResult",
    "StateMismatch",
    "UnsupportedState",
    "Whole",
    "capture",
    "load_into",
    "restore",
]
