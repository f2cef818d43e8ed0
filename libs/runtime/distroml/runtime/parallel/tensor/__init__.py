"""Tensor parallelism for any module: plans that are proved before they are used, and what carries them out."""

from distroml.runtime.parallel.tensor.apply import apply_tensor_plan
from distroml.runtime.parallel.tensor.choose import choose_tensor_plan, choose_tensor_plans
from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.plan import Split, TensorPlan, NoTensorPlan

__all__ = [
    "Layout",
    "Split",
    "TensorPlan",
    "NoTensorPlan",
    "apply_tensor_plan",
    "choose_tensor_plan",
    "choose_tensor_plans",
]
