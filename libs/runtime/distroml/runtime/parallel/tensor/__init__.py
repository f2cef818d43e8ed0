"""Tensor parallelism: which layers of a model are split and how, proved against the undivided model."""

from distroml.runtime.parallel.tensor.apply import apply_tensor_plan
from distroml.runtime.parallel.tensor.plan import NoTensorPlan, TensorPlan, choose_tensor_plan

__all__ = ["NoTensorPlan", "TensorPlan", "apply_tensor_plan", "choose_tensor_plan"]
