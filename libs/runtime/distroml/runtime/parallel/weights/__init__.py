"""Weights by name and slice: first weights as one process makes them, pretrained ones, and their way into any plan."""

from distroml.runtime.parallel.weights.errors import CannotRecord, WeightsError, WeightsMismatch, WeightsRefused
from distroml.runtime.parallel.weights.materialise import allocate, materialise
from distroml.runtime.parallel.weights.pretrained import Pretrained, pretrained
from distroml.runtime.parallel.weights.record import RecordedSource, record
from distroml.runtime.parallel.weights.safetensors import SafetensorsSource
from distroml.runtime.parallel.weights.source import BuiltSource, Index, LiveSource, WeightSource, named_tensors

__all__ = [
    "BuiltSource",
    "CannotRecord",
    "Index",
    "LiveSource",
    "Pretrained",
    "RecordedSource",
    "SafetensorsSource",
    "WeightSource",
    "WeightsError",
    "WeightsMismatch",
    "WeightsRefused",
    "allocate",
    "materialise",
    "named_tensors",
    "pretrained",
    "record",
]
