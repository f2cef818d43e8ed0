"""Which tensors cross each cut of a chain of blocks, and which parameters each part uses, from autograd's own graph.

One pass on fake parameters gives the graph of the loss. Whoever walks it backward from what a stage gives to what it
gets meets exactly the parameters that the stage uses, and the tensors that it needs from before, wherever in the
user's code they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.doors import Edge, Recorder, Result, edge_of
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import fake_state, same_randomness
from distroml.runtime.parallel.pipeline.graph import Graph, Value
from distroml.runtime.parallel.pipeline.standins import standing_in

Run = Callable[[nn.Module], Any]
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class StageFlow:
    """Blocks `first` to `stop` (exclusive), what they get from the stage before, and what they hand on."""

    first: int
    stop: int
    receives: tuple[Value, ...]
    sends: tuple[Value, ...]
    parameters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Flow:
    """One signature's flow through all stages."""

    stages: tuple[StageFlow, ...]
    results: tuple[Result, ...]


class _Runner(nn.Module):
    """Gives `functional_call` a module whose forward is the user's run."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self) -> Any:
        return self._run(self.model)


def follow(
    hollow: nn.Module,
    run: Run,
    blocks: Sequence[str],
    bounds: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device = _CPU,
) -> Flow:
    """The flow of `run(hollow)` through stages between `bounds`; no parameter is allocated and none is changed.

    Args:
        hollow: the undivided model, its parameters on any device.
        run: calls the model; its tensors are on `device`. What it returns is what the last stage makes.
        blocks: module paths in the order of execution.
        bounds: first block of each stage, then the number of blocks.
        dtype: in which floating parameters are computed with, where that isn't their own.
        device: where the run believes to be.

    Raises:
        NoCut: a block runs twice or in another order, or a tensor crosses a cut where it cannot be followed.
    """
    graph, ends, recorder = _followed(hollow, run, blocks, fake_state(hollow, dtype, device))
    return Flow(_stages(graph, ends, bounds), tuple(recorder.results))


@dataclass(frozen=True, slots=True)
class Handed:
    """A tensor in one block's result and the next one's `(args, kwargs)`, with which nobody else computes."""

    shape: torch.Size
    result: trees.Path
    argument: trees.Path


def handed_on(hollow: nn.Module, run: Run, blocks: Sequence[str]) -> list[tuple[Handed, ...]]:
    """For each block but the first, what the one before hands to it alone; arguments and errors as in `follow`."""
    graph, ends, recorder = _followed(hollow, run, blocks, fake_state(hollow, None, _CPU))
    found: list[tuple[Handed, ...]] = []
    for block in range(1, len(blocks)):
        crossing, _ = graph.walk(ends, block)
        handed: list[Handed] = []
        for edge in (edge for edge, users in crossing.items() if users == {block}):
            places = recorder.places.get(edge, [])
            result = next((p.path for p in places if (p.block, p.side) == (block - 1, "result")), None)
            argument = next((p.path for p in places if (p.block, p.side) == (block, "argument")), None)
            if result is not None and argument is not None:
                handed.append(Handed(recorder.tensors[edge].shape, result, argument))
        found.append(tuple(handed))
    return found


def _followed(
    hollow: nn.Module, run: Run, blocks: Sequence[str], state: dict[str, torch.Tensor]
) -> tuple[Graph, list[Edge], Recorder]:
    """The graph of one run, the tensors it ends in, and what was seen at the blocks' doors."""
    try:
        recorder, output = _record(hollow, run, blocks, state)
    except NoCut:
        raise
    except Exception as plain:
        try:
            with standing_in(hollow, blocks):
                recorder, output = _record(hollow, run, blocks, state)
        except NoCut:
            raise
        except Exception as error:
            raise NoCut(
                f"one pass over the sample fails without weights: {type(plain).__name__}: {plain}; and also with its "
                f"blocks stood in for: {type(error).__name__}: {error}"
            ) from error
    if len(recorder.results) < len(blocks):
        raise NoCut(f"block {blocks[len(recorder.results)]} does not run in this forward pass")
    names = {id(tensor): name for name, tensor in state.items()}
    trained = frozenset(name for name, parameter in hollow.named_parameters() if parameter.requires_grad)
    graph = Graph(recorder, names, trained)
    ends = [edge for leaf in trees.leaves_of(output) if isinstance(leaf, torch.Tensor) and (edge := edge_of(leaf))]
    return graph, ends, recorder


def _record(hollow: nn.Module, run: Run, blocks: Sequence[str], state: dict[str, torch.Tensor]) -> tuple[Recorder, Any]:
    recorder = Recorder(hollow, blocks)
    try:
        with same_randomness(), torch.enable_grad():
            whole = {f"model.{name}": tensor for name, tensor in state.items()}
            return recorder, functional_call(_Runner(hollow, run), whole, ())
    finally:
        recorder.close()


def _stages(graph: Graph, ends: list[Edge], bounds: Sequence[int]) -> tuple[StageFlow, ...]:
    stages: list[StageFlow] = []
    roots, sends = ends, ()
    for first, stop in zip(reversed(bounds[:-1]), reversed(bounds[1:]), strict=True):
        users, _ = graph.walk(ends, first)
        crossing, parameters = graph.walk(roots, first)
        receives = tuple(graph.value(edge, users.get(edge, set()), first) for edge in crossing)
        stages.append(StageFlow(first, stop, receives, sends, frozenset(parameters)))
        roots, sends = list(crossing), receives
    return tuple(reversed(stages))
