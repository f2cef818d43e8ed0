"""Tensor parallelism for any module: plans that are proved before they are used, and what carries them out."""

from distroml.runtime.parallel.tensor.alone import part_alone
from distroml.runtime.parallel.tensor.apply import apply_tensor_plan
from distroml.runtime.parallel.tensor.choose import choose_tensor_plan, choose_tensor_plans
from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.plan import NoSequencePlan, NoTensorPlan, Split, TensorPlan
from distroml.runtime.parallel.tensor.runs import along_sequence

__all__ = [
    "Layout",
    "NoSequencePlan",
    "NoTensorPlan",
    "Split",
    "TensorPlan",
    "along_sequence",
    "apply_tensor_plan",
    "choose_tensor_plan",
    "choose_tensor_plans",
    "part_alone",
]
