"""How a model is spread over the workers: plans, and what carries them out."""

from distroml.runtime.parallel.parallelize import ParallelModel, check_compression, parallelize
from distroml.runtime.parallel.plan import Plan, PlanRefused, plan
from distroml.runtime.parallel.reducer import Exchange, GradientReducer, SumExchange

__all__ = [
    "Exchange",
    "GradientReducer",
    "ParallelModel",
    "Plan",
    "PlanRefused",
    "SumExchange",
    "check_compression",
    "parallelize",
    "plan",
]
