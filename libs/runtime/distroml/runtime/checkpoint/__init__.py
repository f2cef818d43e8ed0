"""Checkpoints: saved beside the step, content-addressed, verified on load, restored at any world size."""

from distroml.runtime.checkpoint.errors import CheckpointError, CorruptChunk, StateMismatch, UnsupportedState
from distroml.runtime.checkpoint.planner import PlainLoadPlanner, PlainSavePlanner
from distroml.runtime.checkpoint.reader import ManifestReader
from distroml.runtime.checkpoint.saver import Saver, ShardResult
from distroml.runtime.checkpoint.state import Restored, capture, load_into, restore
from distroml.runtime.checkpoint.writer import ManifestWriter, SaveTarget

__all__ = [
    "CheckpointError",
    "CorruptChunk",
    "ManifestReader",
    "ManifestWriter",
    "PlainLoadPlanner",
    "PlainSavePlanner",
    "Restored",
    "SaveTarget",
    "Saver",
    "ShardResult",
    "StateMismatch",
    "UnsupportedState",
    "capture",
    "load_into",
    "restore",
]
