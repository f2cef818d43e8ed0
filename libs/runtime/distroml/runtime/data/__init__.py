"""Data in a global order that names each step's samples at any world size."""

from distroml.runtime.data.loader import DataLoader, MapDataset, StepBatches
from distroml.runtime.data.order import SampleOrder
from distroml.runtime.data.ranges import DataPosition, StepRange

__all__ = ["DataLoader", "DataPosition", "MapDataset", "SampleOrder", "StepBatches", "StepRange"]
