"""Whether a block that is split computes what the whole one does: outputs and every gradient, on a few tokens.

In float64; in float32 where the block is too large for that, or has operations that know no float64. Ranks are threads.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor.alone import part_of
from distroml.runtime.parallel.tensor.capture import Sample
from distroml.runtime.parallel.tensor.parts import OwnPart
from distroml.runtime.parallel.tensor.plan import Door, Split
from distroml.runtime.parallel.tensor.simulate import LoneRank, run_ranks
from distroml.runtime.parallel.tensor.sums import Ranks
from distroml.runtime.parallel.tensor.values import with_values
from distroml.runtime.typed import backward, norm_of

# Models compute norms and softmax in float32 whatever their type: there one rounding may differ. A wrong split differs
# in the first digit.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
# A block of more elements is explored on meta and proved in float32, without forming its large weights' gradients.
LARGE = 16_000_000


class NotEqual(ValueError):
    """The split block computes something else; the message says what differs first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run gave: tensors by what they are. `apart` are the places of outputs that are each rank's own."""

    apart: frozenset[int]
    outputs: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor | None, ...]
    parameters: dict[str, torch.Tensor | None]


class Prover:
    """Compares splits of one kind of block with the whole block. Nothing random, no process group.

    Attributes:
        block: a copy of the block with made-up values of its parameters; on meta where the block is large.
    """

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._wholes: dict[frozenset[int], Outcome] = {}
        self._large = sum(parameter.numel() for parameter in sample.block.parameters()) > LARGE
        self._dtype = torch.float32 if self._large else torch.float64
        if not self._large and self._fails(torch.float64, "cpu"):
            self._dtype = torch.float32
        self._device = "meta" if self._large and not self._fails(self._dtype, "meta") else "cpu"
        self.block = with_values(sample.block, self._dtype, self._device)

    def call(self, block: nn.Module) -> Any:
        """The output of `block`, a copy of `self.block`, on copies of the sample's arguments."""
        args, kwargs = self._arguments(self._dtype, self._device)
        return block(*args, **kwargs)

    @functools.cached_property
    def real(self) -> nn.Module:
        """As `block`, always on the CPU."""
        return self.block if self._device == "cpu" else with_values(self._sample.block, self._dtype, "cpu")

    def _whole(self, apart: frozenset[int]) -> Outcome:
        if apart not in self._wholes:
            self.real.zero_grad(set_to_none=True)
            # In a thread as well: what holds for the calling thread only, such as modes, holds for neither then.
            self._wholes[apart] = run_ranks(1, lambda _: self._run(self.real, apart))[0]
        return self._wholes[apart]

    @functools.cached_property
    def _shapes(self) -> list[torch.Size]:
        with torch.no_grad():
            return [output.shape for output in _floats(self.call(self.block))]

    def try_shapes(self, splits: Mapping[str, Split], degree: int) -> None:
        """Run rank 0 alone.

        Raises:
            Exception: whatever the block raises when its parts do not fit together.
            NotEqual: an output has another shape than the whole block's.
        """
        with torch.no_grad():
            outputs = _floats(self.call(_part(self.block, splits, LoneRank(degree))))
        shapes = [
            whole if isinstance(output, OwnPart) else output.shape
            for output, whole in zip(outputs, self._shapes, strict=False)
        ]
        if len(outputs) != len(self._shapes) or shapes != self._shapes:
            raise NotEqual(f"outputs have the shapes {[tuple(shape) for shape in shapes]}")

    def prove(self, splits: Mapping[str, Split], degree: int, door: Door | None = None) -> dict[str, Split]:
        """The splits, with the parameters named whose gradients are partial; proved on all ranks.

        Args:
            splits: by path within the block.
            degree: number of ranks.
            door: of the hidden state, where it is divided along the sequence inside.

        Raises:
            NotEqual: an output or gradient differs on a rank.
            Exception: whatever the block raises when its parts do not fit together.
        """
        outcomes = run_ranks(degree, lambda ranks: self._run(_part(self.real, splits, ranks, door)))
        whole = self._whole(outcomes[0].apart)
        for outcome in outcomes:
            self._expect("an output", outcome.outputs, whole.outputs)
            self._expect("the gradient of an input", outcome.inputs, whole.inputs)
        proved = dict(splits)
        scale = max((float(norm_of(g)) for g in whole.parameters.values() if g is not None), default=0.0)
        for name, expected in whole.parameters.items():
            path, _, own = name.rpartition(".")
            split = proved.get(path, Split(style="inside"))
            layout = split.parameters.get(own)
            found = [outcome.parameters[name] for outcome in outcomes]
            wanted = [
                expected if layout is None or expected is None else layout.take(expected, rank, degree)
                for rank in range(degree)
            ]
            if all(self._equal(gradient, right, scale) for gradient, right in zip(found, wanted, strict=True)):
                continue
            parts = [gradient for gradient in found if gradient is not None]
            if layout is not None or not parts or not self._equal(torch.stack(parts).sum(0), expected, scale):
                raise NotEqual(f"the gradient of {name} differs")
            proved[path] = replace(split, summed=(*split.summed, own))
        return proved

    def draws(self) -> bool:
        """Whether the block draws random numbers while it trains."""
        args, kwargs = self._arguments(self._dtype, "cpu")
        before = torch.get_rng_state()
        self.real.train()
        try:
            with torch.no_grad():
                self.real(*args, **kwargs)
        finally:
            self.real.eval()
        return not torch.equal(before, torch.get_rng_state())

    def _fails(self, dtype: torch.dtype, device: str) -> bool:
        args, kwargs = self._arguments(dtype, device)
        try:
            with torch.no_grad():
                with_values(self._sample.block, dtype, device)(*args, **kwargs)
        except Exception:
            return True
        return False

    def _arguments(self, dtype: torch.dtype, device: str) -> Any:
        def fresh(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return copy.deepcopy(leaf)
            made = leaf.detach().to(device, dtype if leaf.is_floating_point() else leaf.dtype, copy=True)
            return made.requires_grad_(leaf.requires_grad)

        return trees.map_leaves(fresh, (self._sample.args, self._sample.kwargs))

    def _run(self, block: nn.Module, apart: frozenset[int] = frozenset()) -> Outcome:
        args, kwargs = self._arguments(self._dtype, "cpu")
        with torch.enable_grad():
            found = _floats(block(*args, **kwargs))
            apart |= {place for place, output in enumerate(found) if isinstance(output, OwnPart)}
            outputs = [output for place, output in enumerate(found) if place not in apart]
            # Of every element something else, so that no two can stand for one another.
            weighed = [
                (output * torch.linspace(0.5, 99.5, output.numel()).sin().view(output.shape)).sum()
                for output in outputs
                if output.requires_grad
            ]
            if weighed:
                backward(torch.stack(weighed).sum())
        return Outcome(
            apart=apart,
            outputs=tuple(output.detach() for output in outputs),
            inputs=tuple(leaf.grad for leaf in _floats((args, kwargs)) if leaf.requires_grad),
            parameters={name: parameter.grad for name, parameter in block.named_parameters()},
        )

    def _expect(
        self, what: str, got: tuple[torch.Tensor | None, ...], expected: tuple[torch.Tensor | None, ...]
    ) -> None:
        if len(got) != len(expected):
            raise NotEqual(f"{what} is missing")
        scale = max((float(norm_of(value)) for value in expected if value is not None), default=0.0)
        for value, right in zip(got, expected, strict=True):
            if not self._equal(value, right, scale):
                raise NotEqual(f"{what} differs")

    def _equal(self, value: torch.Tensor | None, right: torch.Tensor | None, scale: float) -> bool:
        """Equal by norm. What is zero but for rounding is compared with a hundredth of the largest norm around."""
        if value is None or right is None:
            return (value is None or not value.any()) and (right is None or not right.any())
        if value.shape != right.shape:
            return False
        bound = TOLERANCES[self._dtype] * max(float(norm_of(right)), 0.01 * scale)
        return float(norm_of(value.double() - right.double())) <= bound


def _part(block: nn.Module, splits: Mapping[str, Split], ranks: Ranks, door: Door | None = None) -> nn.Module:
    large = [parameter for parameter in block.parameters() if parameter.numel() > LARGE]
    return part_of(block, splits, ranks, door=door, shared=large)


def _floats(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in trees.leaves_of(tree) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
