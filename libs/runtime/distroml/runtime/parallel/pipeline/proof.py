"""The cut proved on the spot: stage by stage in one process, against the uncut model, outputs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import hollow_copy, same_randomness
from distroml.runtime.parallel.pipeline.flow import Flow, Run, follow
from distroml.runtime.parallel.pipeline.stage import StageModule, Task
from distroml.runtime.typed import norm_of

# Both sides make the same operations; only sums of gradients are in another order.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
# A proof holds the values twice, and gradients: about 2 GB; and costs some seconds.
PROVED_PARAMETERS = 64_000_000
_PROVED_PRODUCTS = 10**10


def _values(hollow: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Values for all parameters, and for buffers that have none: small, different everywhere, the same each time."""
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        noise = torch.randn(tensor.shape, generator=generator, dtype=dtype)
        # Scales have at most one dimension and are near one; biases take no harm of it.
        return 1 + 0.1 * noise if tensor.ndim < 2 else noise * 0.5 / tensor.shape[-1] ** 0.5

    values = {name: fill(parameter) for name, parameter in hollow.named_parameters()}
    return values | {name: fill(buffer) for name, buffer in hollow.named_buffers() if buffer.is_meta}


class _Uncut(nn.Module):
    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self) -> Any:
        return self._run(self.model)


def _stage_call(
    stage: StageModule, values: Mapping[str, torch.Tensor], received: Sequence[torch.Tensor]
) -> tuple[Any, dict[str, torch.Tensor]]:
    here = {original: f"model.{original}" for original in stage.names.values()}
    parameters = {name: values[name].detach().requires_grad_(values[name].is_floating_point()) for name in here}
    buffers = {name: values[name] for name, buffer in stage.model.named_buffers() if buffer.is_meta}
    state = {f"model.{name}": tensor for name, tensor in (parameters | buffers).items()}
    return functional_call(stage, state, tuple(received)), parameters


def prove(
    hollow: nn.Module,
    run_of: Callable[[Any], Run],
    sample: Any,
    blocks: Sequence[str],
    bounds: Sequence[int],
    held: Sequence[frozenset[str]],
) -> bool:
    """Compare the cut with the uncut run of `hollow`, on values of its own; nothing of the caller's is changed.

    In float64 where the model can, on at most two samples of the batch where they can be taken apart.

    Returns:
        Whether there was a proof. Too large a model is not proved, nor one that cannot run on random values.

    Raises:
        NoCut: the two differ, or the cut run fails; says where.
    """
    fewer = _fewer(sample)
    size = sum(parameter.numel() for parameter in hollow.parameters())
    elements = max((leaf.numel() for leaf in trees.leaves_of(fewer) if isinstance(leaf, torch.Tensor)), default=1)
    if size > PROVED_PARAMETERS or size * elements > _PROVED_PRODUCTS:
        return False
    for dtype in _TOLERANCE:
        model = hollow_copy(hollow).eval().to(dtype)
        for batch in (fewer, sample) if fewer is not sample else (sample,):
            run = run_of(_cast(batch, dtype))
            values = _values(model, dtype)
            try:
                ends, seeds, expected = _uncut_run(model, values, run)
            except Exception:  # it says nothing about the cut
                continue
            try:
                flow = follow(model, run, blocks, bounds)
                with same_randomness(), torch.enable_grad():
                    got, gradients = _cut_run(model, values, run, flow, blocks, bounds, held, seeds)
            except NoCut:
                raise
            except Exception as error:
                raise NoCut(f"the cut model fails where the whole one runs: {_told(error)}") from error
            for position, (ours, theirs) in enumerate(zip(got, ends, strict=True)):
                _compare(f"result {position} of the last stage", ours, theirs.detach(), dtype)
            for name, reference in expected.items():
                _compare(f"the gradient of {name}", gradients.get(name), reference, dtype)
            return True
    return False


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    return trees.map_leaves(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf, batch
    )


def _fewer(sample: Any) -> Any:
    """The first two samples of a batch whose tensors all have one leading size; else the batch itself."""
    tensors = [leaf for leaf in trees.leaves_of(sample) if isinstance(leaf, torch.Tensor)]
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    if len(sizes) != 1 or max(sizes) <= 2:
        return sample
    return trees.map_leaves(lambda leaf: leaf[:2] if isinstance(leaf, torch.Tensor) else leaf, sample)


def _uncut_run(
    hollow: nn.Module, values: Mapping[str, torch.Tensor], run: Run
) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    whole = {name: v.clone().requires_grad_(v.is_floating_point()) for name, v in values.items()}
    with same_randomness(), torch.enable_grad():
        result = functional_call(_Uncut(hollow, run), {f"model.{name}": v for name, v in whole.items()}, ())
        ends = [leaf for leaf in trees.leaves_of(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        seeds = [torch.ones_like(end) for end in ends]
        torch.autograd.backward(ends, seeds)
    names = [name for name, _ in hollow.named_parameters()]
    return ends, seeds, {name: g for name in names if (g := whole[name].grad) is not None}


def _cut_run(
    hollow: nn.Module,
    values: Mapping[str, torch.Tensor],
    run: Run,
    flow: Flow,
    blocks: Sequence[str],
    bounds: Sequence[int],
    held: Sequence[frozenset[str]],
    seeds: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    passes: list[tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]] = []
    sent: list[torch.Tensor] = []
    result: Any = None
    for index in range(len(bounds) - 1):
        stage = StageModule(copy.deepcopy(hollow), blocks, index, bounds, held[index])
        stage.eval()
        stage.install()
        stage.load(Task(run, flow))
        received = [tensor.detach().requires_grad_() for tensor in sent]
        result, parameters = _stage_call(stage, values, received)
        ends = trees.leaves_of(result)
        sent = [end for end in ends if isinstance(end, torch.Tensor) and (end.requires_grad or not stage.is_last)]
        passes.append((received, sent, parameters))
    gradients: dict[str, torch.Tensor] = {}
    following = list(seeds)
    for received, ends, parameters in reversed(passes):
        torch.autograd.backward(ends, following)
        following = [torch.zeros_like(t) if t.grad is None else t.grad for t in received]
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradients[name] = gradients[name] + parameter.grad if name in gradients else parameter.grad
    return [end.detach() for end in passes[-1][1]], gradients


def _compare(what: str, ours: torch.Tensor | None, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    if ours is None:
        raise NoCut(f"the cut model gives nothing for {what}, which the whole one gives")
    scale = float(norm_of(theirs)) + 1e-30
    difference = float(norm_of(ours - theirs)) / scale
    if not difference <= _TOLERANCE[dtype]:
        raise NoCut(
            f"{what} differs between the cut and the whole model by {difference:.1e} of its size: a tensor that "
            "depends on parameters crosses a cut without a gradient, or outside of the blocks' arguments and results"
        )
