"""The tensor-parallel plan of a model: which modules are split, how, and why the others are not. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from distroml.runtime.checkpoint.layout import Rows
from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.parts import Mend

Style = Literal["column", "row", "experts", "inside"]


class NoTensorPlan(ValueError):
    """The model cannot be split by this degree; the message names module, cause and the nearest degree that works."""


class NoSequencePlan(NoTensorPlan):
    """The model can be split so, but not divided along the sequence; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What tensor parallelism does to one module.

    Attributes:
        style: "column": a linear with the whole input and a part of the output; "row": one with a part of the input,
            whose outputs are summed over the ranks before its bias is added, once; "experts": whole inputs, outputs
            summed, everything between is the module's own; "inside": a module between a column and its row.
        parameters: own parameter name to its layout; parameters that are not named are whole on every rank.
        summed: own parameters that every rank has whole but uses for its part only: their gradients are partial.
        attributes: integers that count what a rank no longer has in full (heads, widths), with their local values.
        region: the path of the row that closes what this module opens or closes, "" for none: between a column and
            its row random numbers differ from rank to rank.
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


@dataclass(frozen=True, slots=True)
class Door:
    """Where a block's hidden state comes in and goes out.

    Attributes:
        argument: its place among the positional arguments, or its name.
        result: its place in the tuple that comes back; None where it is all of it.
    """

    argument: int | str
    result: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """Blocks that hand their hidden state straight on, so that it is divided along the sequence between them.

    Attributes:
        blocks: paths, in the order of execution.
        door: of each of them.
        length: tokens of the sample's sequence.
    """

    blocks: tuple[str, ...]
    door: Door
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """How a model is split over `degree` ranks; proved equal to the whole model before it was handed out.

    Every parameter outside of `modules`, and every one that a `Split` does not lay out, is whole on each rank.

    Attributes:
        degree: size of the tp axis.
        modules: module path to what is done to it. Paths and parameter names are those of the unparallelised model.
        whole: module path to the reason why it is not split, for what could have been.
        limits: numbers that tp must divide, by what they count: "heads", "kv_heads", "split width".
        blocks: paths of the blocks that hold all of `modules`.
        random: blocks draw random numbers while they train (dropout), so that generators are switched in regions.
        sequence: runs of blocks within which hidden states are divided along the sequence; none without sequence
            parallelism.
    """

    degree: int
    modules: dict[str, Split]
    whole: dict[str, str]
    limits: dict[str, int]
    blocks: tuple[str, ...]
    random: bool = False
    sequence: tuple[Stretches, ...] = ()

    @property
    def summed(self) -> set[str]:
        """Parameters that are whole on every rank, with gradients that the caller sums over tp once per step."""
        return {_join(path, name) for path, split in self.modules.items() for name in split.summed}

    @property
    def rows(self) -> dict[str, Rows]:
        """Parameters whose DTensor holds the whole tensor's rows in another order, with that order."""
        found: dict[str, Rows] = {}
        for path, split in self.modules.items():
            for name, layout in split.parameters.items():
                if len(layout.segments) > 1:
                    pieces = [piece for rank in range(self.degree) for piece in layout.pieces(rank, self.degree)]
                    ranges = tuple((piece.start, piece.stop) for piece in pieces)
                    found[_join(path, name)] = Rows(layout.dim, ranges)
        return found

    def layout(self, name: str) -> Layout | None:
        """Layout of the parameter with this full name; None where every rank has it whole."""
        path, _, own = name.rpartition(".")
        split = self.modules.get(path)
        return None if split is None else split.parameters.get(own)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def inside(splits: Mapping[str, Split], block: str) -> dict[str, Split]:
    """The splits within a block, by path from there; what is partial is to be found out anew."""
    prefix = f"{block}." if block else ""
    return {
        "" if path == block else path.removeprefix(prefix): replace(
            split, region=split.region.removeprefix(prefix), summed=()
        )
        for path, split in splits.items()
        if path == block or path.startswith(prefix)
    }
