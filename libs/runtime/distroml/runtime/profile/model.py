"""A model's profile for the planner, from one run forward and backward on weights that take no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from distroml.planner import ModelProfile, Saved, Shape, Unit, Work
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import creation_number, now
from distroml.runtime.parallel.pipeline.flow import follow
from distroml.runtime.parallel.tensor import (
    NoSequencePlan,
    NoTensorPlan,
    TensorPlan,
    along_sequence,
    choose_tensor_plan,
)
from distroml.runtime.profile.chain import NoChain, find_chain, states
from distroml.runtime.profile.counting import Counted, Counter, nbytes
from distroml.runtime.typed import fork_generators

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]


class ProfileRefused(ValueError):
    """The model cannot be profiled with this loss and sample; the message says what went wrong and what to do."""


def profile(model: nn.Module, loss: Loss, sample: Any, *, name: str = "") -> ModelProfile:
    """What the planner needs to know of `model`. No weights are allocated, no GPU is needed, nothing is changed.

    Args:
        model: on any device, `meta` included.
        loss: `(model, batch) -> (sum of losses, count)`.
        sample: a batch as a loader gives it, on the CPU; its first dimension counts samples.
        name: for people.

    Raises:
        ProfileRefused: the loss cannot be run on the sample, or gives no sum and count; nothing is there to train.
    """
    samples = _samples_of(sample)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ProfileRefused("the model has no parameter that requires a gradient: there is nothing to train")
    try:
        chain = find_chain(model, lambda one: loss(one, sample)).blocks
        no_pp = ""
    except NoChain as error:
        chain, no_pp = (), str(error)
    split, no_tp = _tensor_plan(model, chain, loss, sample)
    sequence, no_sequence = _sequence(model, split, loss, sample)
    if chain:
        no_pp = _why_no_cut(model, chain, loss, sample)
    run = _Run(model, chain, split, loss, sample)
    units = [run.unit(index, samples) for index in range(len(chain) + 2)]
    kept = [unit for unit in units if unit is not None]
    tied, sizes = run.tied(kept)
    first = next(model.parameters(), torch.empty(0))
    return ModelProfile(
        name=name or type(model).__name__,
        units=tuple(kept),
        tied=tied,
        tied_parameters=sizes,
        parameter_itemsize=first.element_size(),
        tp_limits={} if split is None else split.limits,
        no_tp=no_tp,
        no_pp=no_pp,
        no_sequence=no_sequence,
        sequence=sequence,
        tokens=max(1, round(run.count / samples)),
    )


def _tensor_plan(model: nn.Module, chain: Sequence[str], loss: Loss, sample: Any) -> tuple[TensorPlan | None, str]:
    why = "the model has no chain of blocks"
    for degree in (2, 3, 5) if chain else ():
        try:
            return choose_tensor_plan(model, chain, loss, sample, degree), ""
        except NoTensorPlan as error:
            why = str(error)
    return None, why


def _sequence(model: nn.Module, split: TensorPlan | None, loss: Loss, sample: Any) -> tuple[int, str]:
    """What every degree of sequence parallelism must divide, and why there is none."""
    if split is None:
        return 0, "it needs tensor parallelism"
    try:
        runs = along_sequence(model, split, loss, sample).sequence
    except NoSequencePlan as error:
        return 0, str(error)
    return math.gcd(*(run.length for run in runs)), ""


def _why_no_cut(model: nn.Module, chain: Sequence[str], loss: Loss, sample: Any) -> str:
    try:
        follow(model, lambda one: loss(one, sample)[0], chain, [*range(len(chain) + 1)])
    except NoCut as error:
        return str(error)
    except Exception as error:
        return f"the forward pass cannot be followed without real weights ({type(error).__name__})"
    return ""


def _samples_of(sample: Any) -> int:
    tensors = [leaf for leaf in trees.leaves_of(sample) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        raise ProfileRefused("the sample holds no tensor whose first dimension counts samples")
    return int(tensors[0].shape[0])


class _Run:
    """One counted run. Unit 0 is what runs before the blocks, 1 to n the blocks, n + 1 what runs after them."""

    def __init__(
        self, model: nn.Module, chain: Sequence[str], split: TensorPlan | None, loss: Loss, sample: Any
    ) -> None:
        self._model = model
        self._chain = chain
        self._split = split
        self._spans: list[tuple[int, int]] = []
        self._regions: list[tuple[int, int]] = []
        self._inputs: dict[int, float] = {}
        self._outputs: dict[int, float] = {}
        self._users: dict[str, set[int]] = {}
        self._frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        self._names = {id(parameter): one for one, parameter in model.named_parameters()}
        self.count = 1.0
        self._counter = Counter(range(len(chain) + 2), ())
        failure: Exception | None = None
        for state in states(model):
            try:
                self._run(state, loss, sample)
                if self._frozen:
                    # The first run told what depends on any parameter; costs are those of what is trained.
                    flowing = self._inputs, self._outputs
                    self._run(state, loss, sample, frozen=self._frozen)
                    self._inputs, self._outputs = flowing
                break
            except Exception as error:
                failure = failure or error
        else:
            raise ProfileRefused(
                f"the loss cannot be run on the sample ({type(failure).__name__}: {failure}); pass a batch as the "
                "loader gives it, and a loss that returns (sum, count)"
            ) from failure

    # ---- the run

    def _run(
        self,
        make: Callable[[nn.Module], dict[str, torch.Tensor]],
        loss: Loss,
        sample: Any,
        frozen: Sequence[str] = (),
    ) -> None:
        self._spans, self._regions = [], []
        self._inputs, self._outputs = {}, {}
        state = make(self._model)
        for name in frozen:
            state[f"model.{name}"].requires_grad_(False)
        self._counter = Counter(range(len(self._chain) + 2), (*state.values(), *self._model.buffers()))
        handles = [*self._watch_blocks(), *self._watch_split(), *self._watch_parameters()]
        counted: list[Any] = []

        def run(model: nn.Module) -> torch.Tensor:
            total, count = loss(model, sample)
            counted.append(count)
            return total

        try:
            with fork_generators(), torch.enable_grad():
                with self._counter, self._counter.saving():
                    total = functional_call(_Runner(self._model, run), state, ())
                self._counter.of_node = self._unit_of
                with self._counter:
                    total.backward()
        finally:
            for handle in handles:
                handle.remove()
        self.count = float(counted[0]) if not hasattr(counted[0], "fake_mode") else float(_samples_of(sample))

    def _unit_of(self, node: Any) -> tuple[int, bool]:
        number = creation_number(node)
        divided = any(start <= number < stop for start, stop in self._regions)
        for block, (start, stop) in enumerate(self._spans):
            if start <= number < stop:
                return block + 1, divided
        if not self._spans or number < self._spans[0][0]:
            return 0, divided
        later = next((block for block, (start, _) in enumerate(self._spans) if number < start), len(self._spans))
        return later + 1, divided

    def _watch_blocks(self) -> list[Any]:
        handles: list[Any] = []

        def enter(number: int) -> Callable[..., None]:
            def entered(block: nn.Module, args: Any, kwargs: Any) -> None:
                self._counter.unit, self._counter.inside = number, False
                self._inputs[number] = _flowing((args, kwargs))
                self._spans.append((now(), 0))

            return entered

        def leave(number: int) -> Callable[..., None]:
            def left(block: nn.Module, args: Any, result: Any) -> None:
                self._spans[-1] = (self._spans[-1][0], now())
                self._outputs[number] = _flowing(result)
                self._counter.unit, self._counter.inside = number + 1, False

            return left

        for number, path in enumerate(self._chain, start=1):
            block = self._model.get_submodule(path)
            handles.append(block.register_forward_pre_hook(enter(number), with_kwargs=True))
            handles.append(block.register_forward_hook(leave(number)))
        return handles

    def _watch_split(self) -> list[Any]:
        handles: list[Any] = []
        if self._split is None:
            return handles
        open_at: list[int] = []

        def enter(kind: str) -> Callable[..., None]:
            def entered(layer: nn.Module, args: Any) -> None:
                if not open_at:
                    open_at.append(now())
                # Inside of experts everything is divided.
                self._counter.inside = True if kind == "experts" else kind

            return entered

        def leave(kind: str) -> Callable[..., None]:
            def left(layer: nn.Module, args: Any, result: Any) -> None:
                self._counter.inside = kind == "column"
                if kind in ("row", "experts") and open_at:
                    self._regions.append((open_at.pop(), now()))
                    counted = self._counter.units[self._counter.unit]
                    counted.reduced_bytes += nbytes(result)
                    counted.collectives += 1

            return left

        for path, one in self._split.modules.items():
            if one.style != "inside":
                layer = self._model.get_submodule(path)
                handles.append(layer.register_forward_pre_hook(enter(one.style)))
                handles.append(layer.register_forward_hook(leave(one.style)))
        return handles

    def _watch_parameters(self) -> list[Any]:
        """Notes in which unit each module with parameters of its own runs."""
        handles: list[Any] = []

        def ran(module: nn.Module) -> Callable[..., None]:
            own = {self._names[id(p)] for p in module.parameters(recurse=False) if id(p) in self._names}

            def called(*_: Any) -> None:
                for name in own:
                    self._users.setdefault(name, set()).add(self._counter.unit)

            return called

        for module in self._model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_pre_hook(ran(module)))
        return handles

    # ---- what came of it

    def _units_of(self, name: str) -> set[int]:
        return self._users.get(name) or {0}

    def unit(self, index: int, samples: int) -> Unit | None:
        """Unit `index`, per sample; None for a "before" or "after" in which nothing is."""
        counted = self._counter.units[index]
        mine = [(name, p) for name, p in self._model.named_parameters() if index in self._units_of(name)]
        last = len(self._chain) + 1
        kind = "before" if index == 0 else "after" if index == last else "block"
        if kind != "block" and not mine and not counted.forward.kernels:
            return None
        trained = [(name, p) for name, p in mine if p.requires_grad]
        divided = sum(p.numel() for name, p in trained if self._split is not None and self._split.layout(name))
        name = kind if kind != "block" else self._chain[index - 1]
        flops = counted.forward.flops + counted.backward.flops
        moved = counted.forward.moved_bytes + counted.backward.moved_bytes
        # Where nothing is saved, as before the first block that is trained, inputs are not kept either.
        inputs = min(self._inputs.get(index, counted.saved["whole"]), sum(counted.saved.values()))
        largest = max(counted.forward.largest_bytes, counted.backward.largest_bytes)
        return Unit(
            name=name,
            kind=kind,
            shape=_shape(kind, self._model, name, counted, mine),
            parameters=sum(p.numel() for _, p in trained),
            split_parameters=divided,
            frozen_parameters=sum(p.numel() for _, p in mine if not p.requires_grad),
            tensors=sum(p.requires_grad for _, p in mine),
            shapes=self._shapes(index, trained),
            forward=Work(flops=counted.forward.flops / samples, moved_bytes=counted.forward.moved_bytes / samples),
            backward=Work(flops=counted.backward.flops / samples, moved_bytes=counted.backward.moved_bytes / samples),
            split=(counted.forward.split_flops + counted.backward.split_flops) / flops if flops else 0.0,
            moved_split=(
                (counted.forward.split_moved_bytes + counted.backward.split_moved_bytes) / moved if moved else 0.0
            ),
            recomputed=Work(moved_bytes=counted.cheap_moved_bytes / samples),
            kernels=counted.forward.kernels,
            saved={
                "none": _saved(counted.saved, samples),
                "selective": _selective(counted, inputs, samples),
                "full": Saved(whole_bytes=inputs / samples),
            },
            # One result and one gradient of that size are alive beside what is saved.
            transient_bytes=2 * largest / samples,
            output_bytes=self._outputs.get(index, self._inputs.get(index + 1, 0.0)) / samples,
            tp_reduced_bytes=counted.reduced_bytes / samples,
            tp_collectives=counted.collectives,
        )

    def _shapes(self, index: int, trained: Sequence[tuple[str, nn.Parameter]]) -> tuple[Shape, ...]:
        """Shapes of a unit's trainable tensors, those left out that an earlier unit has, too."""
        found: dict[tuple[tuple[int, ...], int | None], int] = {}
        for name, parameter in trained:
            if index == min(self._units_of(name)):
                layout = self._split.layout(name) if self._split is not None else None
                key = (tuple(parameter.shape), None if layout is None else layout.dim)
                found[key] = found.get(key, 0) + 1
        return tuple(Shape(sizes, many, divided) for (sizes, divided), many in found.items())

    def tied(self, units: Sequence[Unit]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
        """Groups of places in `units` that share parameters, and how many they share."""
        places = {unit.name: place for place, unit in enumerate(units)}
        names = ["before", *self._chain, "after"]
        groups: dict[tuple[int, ...], int] = {}
        for name, parameter in self._model.named_parameters():
            group = tuple(sorted(places[names[index]] for index in self._units_of(name) if names[index] in places))
            if len(group) > 1:
                groups[group] = groups.get(group, 0) + parameter.numel()
        return tuple(groups), tuple(groups.values())


def _saved(both: dict[str, float], samples: int) -> Saved:
    return Saved(whole_bytes=both["whole"] / samples, split_bytes=both["split"] / samples)


def _selective(counted: Counted, inputs: float, samples: int) -> Saved:
    """Results of matrix products and attention, and the inputs; never more than without any recomputation."""
    plain = _saved(counted.saved, samples)
    kept = Saved(
        whole_bytes=(counted.kept["whole"] + inputs) / samples,
        partial_bytes=counted.kept["whole"] / samples,
        split_bytes=counted.kept["split"] / samples,
    )
    more = kept.whole_bytes + kept.split_bytes > plain.whole_bytes + plain.split_bytes
    return plain if more else kept


def _shape(kind: str, model: nn.Module, name: str, counted: Counted, mine: Sequence[tuple[str, nn.Parameter]]) -> str:
    if kind != "block":
        return kind
    block = model.get_submodule(name)
    sizes = sum(parameter.numel() for _, parameter in mine)
    return f"{type(block).__name__}/{sizes}/{counted.forward.flops:.6g}"


def _flowing(tree: Any) -> float:
    """Bytes of the tensors in `tree` that depend on parameters."""
    leaves = [leaf for leaf in trees.leaves_of(tree) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    return float(sum(nbytes(leaf) for leaf in {id(leaf): leaf for leaf in leaves}.values()))


class _Runner(nn.Module):
    def __init__(self, model: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self) -> torch.Tensor:
        return self._run(self.model)
