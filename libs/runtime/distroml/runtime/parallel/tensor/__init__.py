"""Tensor parallelism for any module: plans that are proved before they are used, and what carries them out."""

from distroml.runtime.parallel.tensor.alone import part_alone
from distroml.runtime.parallel.tensor.apply import apply_tensor_plan
from distroml.runtime.parallel.tensor.choose import choose_tensor_plan, choose_tensor_plans
from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.plan import NoTensorPlan, Split, TensorPlan

__all__ = [
    "Layout",
    "NoTensorPlan",
    "Split",
    "TensorPlan",
    "apply_tensor_plan",
    "choose_tensor_plan",
    "choose_tensor_plans",
    "part_alone",
]
