"""The tensor-parallel plan of a model: which modules are split, how, and why the others are not. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.parts import Mend

Style = Literal["column", "row", "experts", "inside"]


class TensorRefused(ValueError):
    """Nothing of the model can be split by this degree; the message names module, cause and the nearest that works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What tensor parallelism does to one module.

    Attributes:
        style: "column": a linear with the whole input and a part of the output; "row": one with a part of the input,
            whose outputs are summed over the ranks before its bias is added, once; "experts": whole inputs, outputs
            summed, everything between is the module's own; "inside": a module between a column and its row.
        parameters: own parameter name to its layout; parameters that are not named are whole on every rank.
        summed: own parameters that every rank has whole but uses for its part only: gradients are summed.
        attributes: integers that count what a rank no longer has in full (heads, widths), with their local values.
        region: the path of the row that closes what this module opens ("" where it neither opens nor closes):
            between the two, random numbers differ from rank to rank.
        mend: activations behind this column mend code that counts on whole ones (`parts`), "" where none does.
        source: where the style comes from: the model's own plan, or its structure.
    """

    style: Style
    parameters: dict[str, Layout] = field(default_factory=dict[str, Layout])
    summed: tuple[str, ...] = ()
    attributes: dict[str, int] = field(default_factory=dict[str, int])
    region: str = ""
    mend: Mend = ""
    source: Literal["model", "structure"] = "structure"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """How a model is split over `degree` ranks; proved equal to the whole model before it was handed out.

    Every parameter outside of `modules`, and every one that a `Split` does not lay out, is whole on each rank.

    Attributes:
        degree: size of the tp axis.
        modules: module path to what is done to it. Paths and parameter names are those of the unparallelised model.
        whole: module path to the reason why it is not split, for what could have been.
        limits: numbers that `degree` must divide for the splits of this plan, by what they count.
        blocks: paths of the blocks that hold all of `modules`.
        random: blocks draw random numbers between a column and its row while they train (dropout of attention
            weights), so that generators are switched there.
        sequence_parallel: whether activations that tp holds as copies are split along the sequence.
    """

    degree: int
    modules: dict[str, Split]
    whole: dict[str, str]
    limits: dict[str, int]
    blocks: tuple[str, ...]
    random: bool = False
    sequence_parallel: bool = False

    def layout(self, name: str) -> Layout | None:
        """Layout of the parameter with this full name; None where every rank has it whole."""
        path, _, own = name.rpartition(".")
        split = self.modules.get(path)
        return None if split is None else split.parameters.get(own)

    def pieces(self, name: str, rank: int) -> tuple[slice, ...] | None:
        """Slices of the global parameter `name` along `layout(name).dim` that tp rank `rank` holds, in local order."""
        layout = self.layout(name)
        return None if layout is None else layout.pieces(rank, self.degree)
