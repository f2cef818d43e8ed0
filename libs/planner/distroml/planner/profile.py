"""What the planner knows of a model: its units in the order of execution, and what each costs.

A profile says nothing of machines. It comes from a real module on fake tensors (`distroml.runtime.profile`) or from a
description in numbers (`distroml.planner.transformer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distroml.planner.plan import Recompute

Kind = Literal["before", "block", "after"]
Engine = Literal["torch", "megatron"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One pass over one sample, undivided: floating-point operations of matrix products, bytes of memory traffic.

    Attributes:
        flops: of matrix products; two for each multiply and add.
        attention_flops: those of `flops` that attention by tiles makes, a causal mask's upper half counted as well.
        moved_bytes: read and written by all operations, as far as it grows with the number of samples: parameters
            are not among it.
    """

    flops: float = 0.0
    attention_flops: float = 0.0
    moved_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Bytes per sample that a forward pass leaves for the backward pass.

    Attributes:
        whole_bytes: held by every tp rank, as copies; sequence parallelism divides it too, but for
        partial_bytes: those of `whole_bytes` that no plan divides: results that are yet to be summed over tp.
        split_bytes: divided by tp.
    """

    whole_bytes: float = 0.0
    partial_bytes: float = 0.0
    split_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """So many trainable tensors of one shape; tp divides dimension `divided` of them, or none where that is None."""

    sizes: tuple[int, ...]
    many: int = 1
    divided: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A block of the chain, or everything with parameters that runs before or after it.

    Attributes:
        name: module path of a block; "before", "after".
        kind: where it stands.
        shape: units of one shape cost the same; measured times are kept by it.
        parameters: trainable elements; of them
        split_parameters: those that tp divides.
        frozen_parameters: elements without gradient or optimizer state.
        tensors: how many tensors the trainable elements are in; 0 where nobody counted.
        shapes: of those tensors; one that several units share is told of by the first. What is not told of counts as
            vectors, which matter to compression by low rank only.
        forward: cost of the forward pass of one sample.
        backward: cost of the backward pass of one sample, without recomputation.
        split: the share of both passes' operations that tp divides, 0 to 1.
        moved_split: the share of both passes' memory traffic that tp divides, where it is another one; sequence
            parallelism divides the rest too.
        recomputed: what `recompute="selective"` adds to the backward pass.
        kernels: operations that one forward pass launches; 0 where nobody counted.
        saved: what is kept for the backward pass, by kind of recomputation. With "full" it is the unit's inputs.
        transient_bytes: most temporary bytes per sample beside what is saved, while it runs; divided like `split`.
        output_bytes: bytes per sample that cross to the next stage where the chain is cut behind this unit.
        tp_reduced_bytes: bytes per sample that its all-reduces along tp carry in one forward pass; the backward pass
            carries the same.
        tp_collectives: how many all-reduces that is.
    """

    name: str
    kind: Kind
    shape: str
    parameters: int
    split_parameters: int = 0
    frozen_parameters: int = 0
    tensors: int = 0
    shapes: tuple[Shape, ...] = ()
    forward: Work
    backward: Work
    split: float = 0.0
    moved_split: float | None = None
    recomputed: Work = Work()
    kernels: int = 0
    saved: dict[str, Saved]
    transient_bytes: float = 0.0
    output_bytes: float = 0.0
    tp_reduced_bytes: float = 0.0
    tp_collectives: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model as the planner sees it.

    Attributes:
        name: for people.
        units: "before" (at most one), the blocks, "after" (at most one), in the order of execution.
        tied: groups of unit indexes that share parameters; a unit's `parameters` counts its shared ones too, and
            where they lie in different stages both hold them and sum their gradients.
        tied_parameters: elements shared by each group of `tied`.
        parameter_itemsize: bytes of one element of parameters as they are stored.
        tp_limits: numbers that tp must divide, each by what it counts ("heads": 32, "kv_heads": 8, …).
        no_tp: why tp cannot be above 1, "" where it can.
        no_pp: why pp cannot be above 1, "" where it can.
        no_sequence: why there can be no sequence parallelism, "" where there can.
        tokens: tokens (or other terms of the loss) in one sample.
        sequence: tokens of one sample that sequence parallelism divides; 0 where those are `tokens`.
        engine: what runs the plan. "torch" is this project's runtime: boundary tensors of stages travel as copies
            from each tp rank, into a buffer for each microbatch; pipelined stages gather and scatter for each
            microbatch; sequence parallelism ends where the blocks do, and what columns need again is gathered anew
            in the backward pass. "megatron" stands for engines whose measurements are
            published: boundary tensors travel as tp-th parts, and pipelined stages that keep their parameters gather
            and scatter once a step.
    """

    name: str
    units: tuple[Unit, ...]
    tied: tuple[tuple[int, ...], ...] = ()
    tied_parameters: tuple[int, ...] = ()
    parameter_itemsize: int = 4
    tp_limits: dict[str, int]
    no_tp: str = ""
    no_pp: str = ""
    no_sequence: str = ""
    tokens: int = 1
    sequence: int = 0
    engine: Engine = "torch"

    def divides_sequence(self, tp: int) -> bool:
        """Whether sequence parallelism over `tp` ranks is possible."""
        return tp > 1 and not self.no_sequence and (self.sequence or self.tokens) % tp == 0

    @property
    def model_flops(self) -> float:
        """Operations of one sample's forward and backward pass, recomputation not among them."""
        return sum(unit.forward.flops + unit.backward.flops for unit in self.units)

    @property
    def parameters(self) -> int:
        """Trainable elements, shared ones once."""
        twice = sum((len(group) - 1) * size for group, size in zip(self.tied, self.tied_parameters, strict=True))
        return sum(unit.parameters for unit in self.units) - twice

    @property
    def block_count(self) -> int:
        """Blocks of the chain."""
        return len(self.units) - sum(unit.kind != "block" for unit in (*self.units[:1], *self.units[1:][-1:]))

    @property
    def blocks(self) -> tuple[Unit, ...]:
        """The chain's blocks."""
        return tuple(unit for unit in self.units if unit.kind == "block")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredUnit:
    """One shape's real seconds on one rank while all ranks ran it at once, without the collectives of tp.

    With another `recompute` than "none" the backward pass includes what it computes again.
    """

    shape: str
    microbatch: int
    tp: int
    forward_s: float
    backward_s: float
    recompute: Recompute = "none"
