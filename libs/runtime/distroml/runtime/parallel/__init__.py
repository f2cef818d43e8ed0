"""How a model is spread over the workers: plans, and what carries them out."""

from distroml.runtime.parallel.alike import CompressionDiffers, RanksDiffer
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.compression import Compression, Residuals
from distroml.runtime.parallel.culprits import NonFinite
from distroml.runtime.parallel.divide import Part
from distroml.runtime.parallel.gradients import Gradients, local_of
from distroml.runtime.parallel.loss import Batch, LossFunction, check_loss
from distroml.runtime.parallel.model import ParallelModel
from distroml.runtime.parallel.parallelize import choose_plan, parallelize, spread
from distroml.runtime.parallel.plan import Plan, PlanRefused, plan
from distroml.runtime.parallel.precision import Precision
from distroml.runtime.parallel.randomness import seed_pass
from distroml.runtime.parallel.reducer import Exchange, GradientReducer, SumExchange

__all__ = [
    "Batch",
    "CompressedExchange",
    "Compression",
    "CompressionDiffers",
    "Exchange",
    "GradientReducer",
    "Gradients",
    "LossFunction",
    "NonFinite",
    "ParallelModel",
    "Part",
    "Plan",
    "PlanRefused",
    "Precision",
    "RanksDiffer",
    "Residuals",
    "SumExchange",
    "check_loss",
    "choose_plan",
    "local_of",
    "parallelize",
    "plan",
    "seed_pass",
    "spread",
]
