"""Pipeline parallelism: the user's own model on every stage, cut where values flow between its repeated blocks."""

from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.pipeline import Pipeline
from distroml.runtime.parallel.pipeline.schedule import check_microbatches
from distroml.runtime.parallel.pipeline.stage import StageModule

__all__ = ["NoCut", "Pipeline", "StageModule", "check_microbatches"]
