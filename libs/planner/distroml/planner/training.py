"""How a model is trained, as far as it costs time or memory: optimizer, precision, what gradients are exchanged as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from distroml.planner.compressing import NO_COMPRESSION, Compressing
from distroml.planner.plan import PlanRefused

Optimizer = Literal["adamw", "adam", "momentum", "sgd"]
Precision = Literal["fp64", "fp32", "bf16", "fp16"]

OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ITEMSIZE: dict[str, int] = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
_STATES: dict[str, int] = {"adamw": 2, "adam": 2, "momentum": 1, "sgd": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Optimizer, precision and exchange of gradients.

    Attributes:
        optimizer: which; it decides how many states each parameter has.
        precision: dtype of matrix products and activations; parameters are stored as the profile says.
        master_weights: 16-bit parameters are accompanied by 32-bit copies, gradients and states (18 bytes per
            parameter under Adam), as Megatron keeps them.
        compressing: how gradients are compressed when they are exchanged.
    """

    optimizer: Optimizer = "adamw"
    precision: Precision = "bf16"
    master_weights: bool = False
    compressing: Compressing = NO_COMPRESSION

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise PlanRefused(f"{name} must be one of {', '.join(known)}, got {value!r}")

    @property
    def compute_itemsize(self) -> int:
        """Bytes of one element in computation."""
        return ITEMSIZE[self.precision]

    def has_master(self, parameter_itemsize: int) -> bool:
        """Whether parameters of that size are accompanied by 32-bit copies."""
        return self.master_weights and parameter_itemsize < 4

    def gradient_bytes(self, parameter_itemsize: int) -> int:
        """Bytes that one parameter's gradient takes up."""
        return 4 if self.has_master(parameter_itemsize) else parameter_itemsize

    def state_bytes(self, parameter_itemsize: int) -> int:
        """Bytes that the optimizer keeps for one parameter, its 32-bit copy among them."""
        if self.has_master(parameter_itemsize):
            return 4 + 4 * _STATES[self.optimizer]
        return parameter_itemsize * _STATES[self.optimizer]

    def reduced_bytes(self, parameter_itemsize: int) -> int:
        """Bytes of one gradient element in an exchange: 16-bit parameters have 16-bit gradients, and sum them so."""
        return min(parameter_itemsize, self.gradient_bytes(parameter_itemsize))

    def step_bytes(self, parameter_itemsize: int) -> int:
        """Memory traffic of one parameter's optimizer step: states read and written, the gradient read twice."""
        state, gradient = self.state_bytes(parameter_itemsize), self.gradient_bytes(parameter_itemsize)
        # The gradient is read for its norm and for the update.
        return 2 * state + 2 * gradient + 2 * parameter_itemsize
