"""Which tensors cross each cut of a chain of blocks, and which parameters each part uses, from autograd's own graph.

One pass on fake parameters gives the graph of the loss. Whoever walks it backward from what a stage gives to what it
gets meets exactly the parameters that the stage uses, and the tensors that it needs from before, wherever in the
user's code they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import creation_number, fake_state, now, same_randomness
from distroml.runtime.parallel.pipeline.standins import standing_in

Run = Callable[[nn.Module], Any]
_Edge = tuple[Any, int]  # an autograd node and which of its outputs
_CPU = torch.device("cpu")
_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is seen: a leaf of a block's `(args, kwargs)` or of its result."""

    block: int
    side: Literal["argument", "result"]
    path: trees.Path


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that crosses a cut. `places` are in the order of execution; `trained`: a gradient flows back."""

    shape: torch.Size
    dtype: torch.dtype
    trained: bool
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Hole:
    """A tensor in a foreign block's result that nobody will read."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Argument:
    """A leaf of a foreign block's result that is one of its arguments."""

    path: trees.Path


@dataclass(frozen=True, slots=True)
class Result:
    """What a block gives back: for each leaf a `Hole`, an `Argument` or a plain constant."""

    leaves: dict[trees.Path, Any]
    shape: trees.Shape


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


def _edge_of(tensor: torch.Tensor) -> _Edge | None:
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


class _Recorder:
    """Hooks on the blocks of a model that note every tensor at their doors."""

    def __init__(self, model: nn.Module, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        self.spans: list[tuple[int, int]] = []
        self.results: list[Result] = []
        self.places: dict[_Edge, list[Place]] = {}
        self.tensors: dict[_Edge, torch.Tensor] = {}
        self._inside: int | None = None
        self._arguments: dict[trees.Path, Any] = {}
        self._start = 0
        self._handles: list[Any] = []
        for number, path in enumerate(blocks):
            block = model.get_submodule(path)
            self._handles.append(block.register_forward_pre_hook(self._enter(number), with_kwargs=True, prepend=True))
            self._handles.append(block.register_forward_hook(self._leave(number), with_kwargs=True))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, number: int, side: Literal["argument", "result"], leaves: dict[trees.Path, Any]) -> None:
        for path, leaf in leaves.items():
            edge = _edge_of(leaf) if isinstance(leaf, torch.Tensor) else None
            if edge is not None:
                self.places.setdefault(edge, []).append(Place(number, side, path))
                self.tensors[edge] = leaf

    def _enter(self, number: int) -> Callable[..., None]:
        def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
            name = self.blocks[number]
            if self._inside is not None:
                raise NoCut(f"block {name} runs inside block {self.blocks[self._inside]}")
            done = len(self.results)
            if number < done:
                raise NoCut(f"block {name} runs twice in one forward pass, so that no stage can hold it alone")
            if number > done:
                raise NoCut(f"block {name} runs before block {self.blocks[done]}, in another order than the chain's")
            self._inside = number
            self._arguments, _ = trees.flatten((args, kwargs))
            self._note(number, "argument", self._arguments)
            self._start = now()

        return enter

    def _leave(self, number: int) -> Callable[..., None]:
        def leave(block: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self.spans.append((self._start, now()))
            leaves, shape = trees.flatten(result)
            sources = {id(leaf): path for path, leaf in self._arguments.items() if not isinstance(leaf, _PLAIN)}
            template: dict[trees.Path, Any] = {}
            for path, leaf in leaves.items():
                if id(leaf) in sources:
                    template[path] = Argument(sources[id(leaf)])
                elif isinstance(leaf, torch.Tensor):
                    template[path] = Hole(leaf.shape, leaf.dtype)
                elif isinstance(leaf, _PLAIN):
                    template[path] = leaf
                else:
                    raise NoCut(
                        f"block {self.blocks[number]} returns a {type(leaf).__name__} at {trees.words(path)}, "
                        "which cannot be followed; blocks must return tensors in tuples, lists or dicts"
                    )
            self.results.append(Result(template, shape))
            self._note(number, "result", leaves)
            self._inside, self._arguments = None, {}

        return leave


class _Graph:
    """The autograd graph of one run, and the walks through it."""

    def __init__(self, recorder: _Recorder, names: dict[int, str], trained: frozenset[str]) -> None:
        self._recorder = recorder
        self._names = names
        self._trained = trained
        self._starts = [start for start, _ in recorder.spans]
        self._flows: dict[Any, bool] = {}

    def walk(self, roots: Iterable[_Edge], first: int) -> tuple[dict[_Edge, set[int | None]], set[str]]:
        """From `roots` back to the start of block `first`.

        Returns:
            Tensors made before, each with the blocks that use it (None: code between blocks), and names of parameters.
        """
        start = self._starts[first] if first else -1
        crossing: dict[_Edge, set[int | None]] = {}
        parameters: set[str] = set()
        todo: list[Any] = []
        seen: set[Any] = set()
        for edge in roots:
            # What goes through untouched is read by nobody here.
            if not self._early(edge, start, crossing, (), parameters):
                todo.append(edge[0])
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            user = (self._block_of(creation_number(node)),)
            todo += [
                edge[0]
                for edge in node.next_functions
                if edge[0] is not None and not self._early(edge, start, crossing, user, parameters)
            ]
        return crossing, parameters

    def _early(
        self,
        edge: _Edge,
        start: int,
        crossing: dict[_Edge, set[int | None]],
        user: tuple[int | None, ...],
        parameters: set[str],
    ) -> bool:
        if hasattr(edge[0], "variable"):
            name = self._names.get(id(edge[0].variable))
            if name is not None:
                parameters.add(name)
            return True
        if creation_number(edge[0]) < start:
            crossing.setdefault((edge[0], edge[1]), set()).update(user)
            return True
        return False

    def _block_of(self, number: int) -> int | None:
        for block, (start, stop) in enumerate(self._recorder.spans):
            if start <= number < stop:
                return block
        return None

    def value(self, edge: _Edge, users: set[int | None], first: int) -> Value:
        """The crossing tensor as something that can be sent to the stage that begins at block `first`."""
        blocks = self._recorder.blocks
        places = tuple(self._recorder.places.get(edge, ()))
        cut = f"the cut before block {blocks[first]}"
        if not any(place.block < first or (place.block == first and place.side == "argument") for place in places):
            raise NoCut(
                f"a tensor made by {edge[0].name()} before {cut} is used {self._where(users)} behind it, but is "
                "neither argument nor result of a block, so that it cannot be followed; hand it to the blocks as an "
                "argument"
            )
        for user in users:
            reached = (
                any(place.block < first and place.side == "result" for place in places)
                if user is None
                else any(place.block == user and place.side == "argument" for place in places)
            )
            if not reached:
                raise NoCut(
                    f"a tensor made by {edge[0].name()} before {cut} is used {self._where({user})} on another way than "
                    "through the blocks' arguments and results, so that it cannot be handed over"
                )
        tensor = self._recorder.tensors[edge]
        return Value(tensor.shape, tensor.dtype, self._is_trained(edge[0]), places)

    def _where(self, users: set[int | None]) -> str:
        named = sorted(self._recorder.blocks[user] for user in users if user is not None)
        outside = ["by code outside of the blocks"] if None in users else []
        return " and ".join(outside + [f"inside block {name}" for name in named])

    def _is_trained(self, node: Any) -> bool:
        todo, seen = [node], {node}
        while todo:
            for following, _ in todo.pop().next_functions:
                if following is None or following in seen:
                    continue
                if hasattr(following, "variable"):
                    if self._names.get(id(following.variable)) in self._trained:
                        return True
                else:
                    seen.add(following)
                    todo.append(following)
        return False


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
) -> tuple[_Graph, list[_Edge], _Recorder]:
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
    graph = _Graph(recorder, names, trained)
    ends = [edge for leaf in trees.leaves_of(output) if isinstance(leaf, torch.Tensor) and (edge := _edge_of(leaf))]
    return graph, ends, recorder


def _record(
    hollow: nn.Module, run: Run, blocks: Sequence[str], state: dict[str, torch.Tensor]
) -> tuple[_Recorder, Any]:
    recorder = _Recorder(hollow, blocks)
    try:
        with same_randomness(), torch.enable_grad():
            whole = {f"model.{name}": tensor for name, tensor in state.items()}
            return recorder, functional_call(_Runner(hollow, run), whole, ())
    finally:
        recorder.close()


def _stages(graph: _Graph, ends: list[_Edge], bounds: Sequence[int]) -> tuple[StageFlow, ...]:
    stages: list[StageFlow] = []
    roots, sends = ends, ()
    for first, stop in zip(reversed(bounds[:-1]), reversed(bounds[1:]), strict=True):
        users, _ = graph.walk(ends, first)
        crossing, parameters = graph.walk(roots, first)
        receives = tuple(graph.value(edge, users.get(edge, set()), first) for edge in crossing)
        stages.append(StageFlow(first, stop, receives, sends, frozenset(parameters)))
        roots, sends = list(crossing), receives
    return tuple(reversed(stages))
