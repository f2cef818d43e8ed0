"""Whether a block that is split computes what the whole one does: outputs and every gradient, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.tensor.apply import hook_modules
from distroml.runtime.parallel.tensor.capture import Sample
from distroml.runtime.parallel.tensor.plan import Split
from distroml.runtime.parallel.tensor.sums import Ranks
from distroml.runtime.parallel.tensor.simulate import LoneRank, run_ranks

# Models compute norms and softmax in float32 whatever their type: there one rounding may differ. A wrong split differs
# in the first digit.
TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4}


class NotEqual(ValueError):
    """The split block computes something else; the message says what differs first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run gave: tensors by what they are."""

    outputs: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor | None, ...]
    parameters: dict[str, torch.Tensor | None]


class Prover:
    """Compares splits of one kind of block with the whole block. Nothing random, no process group.

    In float64; in float32 where the block has operations that know no float64.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.dtype = torch.float64
        try:
            self.block = _with_values(sample.block, self.dtype)
            self.whole = self._run(self.block)
        except RuntimeError:
            self.dtype = torch.float32
            self.block = _with_values(sample.block, self.dtype)
            self.whole = self._run(self.block)
        self.tolerance = TOLERANCES[self.dtype]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A copy of the sample's arguments, in the type of the proof."""
        return _fresh(self.sample.args, self.dtype), _fresh(self.sample.kwargs, self.dtype)

    def call(self, block: nn.Module) -> Any:
        """The block's output on copies of the sample's arguments."""
        args, kwargs = self.arguments()
        return block(*args, **kwargs)

    def try_shapes(self, splits: Mapping[str, Split], degree: int) -> None:
        """Run rank 0 alone.

        Raises:
            Exception: whatever the block raises when its parts do not fit together.
            NotEqual: an output has another shape than the whole block's.
        """
        with torch.no_grad():
            outputs = tuple(_floats(self.call(self._local(splits, LoneRank(degree)))))
        if [output.shape for output in outputs] != [output.shape for output in self.whole.outputs]:
            raise NotEqual(f"outputs have shapes {[tuple(output.shape) for output in outputs]}")

    def prove(self, splits: Mapping[str, Split], degree: int) -> dict[str, Split]:
        """The splits, with the parameters whose gradients must be summed named; each is proved on all ranks.

        Args:
            splits: by path within the block.
            degree: number of ranks, which are simulated.

        Raises:
            NotEqual: an output or gradient differs on a rank.
            Exception: whatever the block raises when its parts do not fit together.
        """
        outcomes = run_ranks(degree, lambda ranks: self._run(self._local(splits, ranks)))
        for outcome in outcomes:
            self._expect("an output", outcome.outputs, self.whole.outputs)
            self._expect("the gradient of an input", outcome.inputs, self.whole.inputs)
        summed: dict[str, Split] = {}
        scale = max((float(g.norm()) for g in self.whole.parameters.values() if g is not None), default=0.0)
        for name, expected in self.whole.parameters.items():
            path, _, own = name.rpartition(".")
            split = splits.get(path)
            layout = split.parameters.get(own) if split else None
            gradients = [outcome.parameters[name] for outcome in outcomes]
            if all(
                self._equal(gradient, expected if layout is None else _part(layout, expected, rank, degree), scale)
                for rank, gradient in enumerate(gradients)
            ):
                continue
            there = [gradient for gradient in gradients if gradient is not None]
            if layout is None and there and self._equal(torch.stack(there).sum(0), expected, scale):
                split = summed.get(path) or split or Split(style="inside")
                summed[path] = replace(split, summed=(*split.summed, own))
                continue
            raise NotEqual(f"the gradient of {name} differs")
        if summed:
            return self.prove({**splits, **summed}, degree)
        return dict(splits)

    def _local(self, splits: Mapping[str, Split], ranks: Ranks) -> nn.Module:
        """The block as one rank has it."""
        memo: dict[int, Any] = {}
        for path, split in splits.items():
            for name, layout in split.parameters.items():
                parameter = self.block.get_submodule(path).get_parameter(name)
                local = layout.take(parameter.detach(), ranks.rank, ranks.degree)
                memo[id(parameter)] = nn.Parameter(local.clone())
        block = copy.deepcopy(self.block, memo)
        hook_modules(block, dict(splits), ("",), ranks, random=False)
        return block

    def _run(self, block: nn.Module) -> Outcome:
        args, kwargs = self.arguments()
        with torch.enable_grad():
            outputs = tuple(_floats(block(*args, **kwargs)))
            # Of every output something else, so that no two of its elements can stand for one another.
            total = torch.zeros((), dtype=torch.float64)
            for output in outputs:
                if output.requires_grad:
                    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).sin()
                    total = total + (output.double().flatten() * weights).sum()
            if total.requires_grad:
                total.backward()
        inputs = tuple(value.grad for value in (*_floats(args), *_floats(kwargs)) if value.requires_grad)
        return Outcome(
            outputs=tuple(output.detach() for output in outputs),
            inputs=inputs,
            parameters={name: parameter.grad for name, parameter in block.named_parameters()},
        )

    def _expect(self, what: str, got: tuple[torch.Tensor | None, ...], expected: tuple[torch.Tensor | None, ...]) -> None:
        if len(got) != len(expected):
            raise NotEqual(f"{what} is missing")
        scale = max((float(value.norm()) for value in expected if value is not None), default=0.0)
        for value, reference in zip(got, expected, strict=True):
            if not self._equal(value, reference, scale):
                raise NotEqual(f"{what} differs")

    def _equal(self, value: torch.Tensor | None, reference: torch.Tensor | None, scale: float) -> bool:
        """Equal by norm. What is zero but for rounding is compared with a hundredth of `scale`, the largest norm around."""
        if value is None or reference is None:
            return (value is None or not value.any()) and (reference is None or not reference.any())
        if value.shape != reference.shape:
            return False
        bound = self.tolerance * max(float(reference.norm()), 0.01 * scale)
        return float((value.double() - reference.double()).norm()) <= bound


def _with_values(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU, in the type of the proof, whose parameters have values of a size that training could give them.

    Own values are not taken: biases that are still zero would hide that they are added twice.
    """
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for name, parameter in block.named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        if parameter.ndim > 1:
            noise /= parameter.shape[-1] ** 0.5
        else:
            noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        memo[id(parameter)] = nn.Parameter(noise)
    for buffer in block.buffers():
        if buffer.is_meta and buffer.is_floating_point():
            memo[id(buffer)] = torch.randn(buffer.shape, dtype=torch.float64, generator=generator)
        elif buffer.is_meta:
            memo[id(buffer)] = torch.ones(buffer.shape, dtype=buffer.dtype)
        else:
            memo[id(buffer)] = buffer.detach().cpu().clone()
    copied = copy.deepcopy(block, memo).to(dtype)
    copied.eval()
    return copied


def _part(layout: Any, expected: torch.Tensor | None, rank: int, degree: int) -> torch.Tensor | None:
    return None if expected is None else layout.take(expected, rank, degree)


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list):
        for part in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _floats(part)
    elif isinstance(value, dict):
        for part in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _floats(part)


def _fresh(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        copied = value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
        return copied.requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return tuple(_fresh(part, dtype) for part in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_fresh(part, dtype) for part in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: _fresh(part, dtype) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return copy.deepcopy(value)
