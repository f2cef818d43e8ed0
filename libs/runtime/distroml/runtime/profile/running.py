"""One run of a model on weights that take no memory, counted by units: blocks of its chain, and what is around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.fakes import creation_number, now
from distroml.runtime.parallel.tensor import TensorPlan
from distroml.runtime.profile.chain import states
from distroml.runtime.profile.counting import Counter, nbytes
from distroml.runtime.typed import fork_generators

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]


class ProfileRefused(ValueError):
    """The model cannot be profiled with this loss and sample; the message says what went wrong and what to do."""


def samples_of(sample: Any) -> int:
    """How many a batch has. Raises `ProfileRefused` where that cannot be told."""
    tensors = [leaf for leaf in trees.leaves_of(sample) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        raise ProfileRefused("the sample holds no tensor whose first dimension counts samples")
    return int(tensors[0].shape[0])


class CountedRun:
    """One counted run. Unit 0 is what runs before the blocks, 1 to n the blocks, n + 1 what runs after them."""

    def __init__(
        self, model: nn.Module, chain: Sequence[str], split: TensorPlan | None, loss: Loss, sample: Any
    ) -> None:
        self.model = model
        self.chain = chain
        self.split = split
        self._spans: list[tuple[int, int]] = []
        self._regions: list[tuple[int, int]] = []
        self.inputs: dict[int, float] = {}
        self.outputs: dict[int, float] = {}
        self._users: dict[str, set[int]] = {}
        self._frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        self._names = {id(parameter): one for one, parameter in model.named_parameters()}
        self.count = 1.0
        self.counter = Counter(range(len(chain) + 2), ())
        failure: Exception | None = None
        for state in states(model):
            try:
                self._run(state, loss, sample)
                if self._frozen:
                    # The first run told what depends on any parameter; costs are those of what is trained.
                    flowing = self.inputs, self.outputs
                    self._run(state, loss, sample, frozen=self._frozen)
                    self.inputs, self.outputs = flowing
                break
            except Exception as error:
                failure = failure or error
        else:
            raise ProfileRefused(
                f"the loss cannot be run on the sample ({type(failure).__name__}: {failure}); pass a batch as the "
                "loader gives it, and a loss that returns (sum, count)"
            ) from failure

    def _run(
        self,
        make: Callable[[nn.Module], dict[str, torch.Tensor]],
        loss: Loss,
        sample: Any,
        frozen: Sequence[str] = (),
    ) -> None:
        self._spans, self._regions = [], []
        self.inputs, self.outputs = {}, {}
        state = make(self.model)
        for name in frozen:
            state[f"model.{name}"].requires_grad_(False)
        self.counter = Counter(range(len(self.chain) + 2), (*state.values(), *self.model.buffers()))
        handles = [*self._watch_blocks(), *self._watch_split(), *self._watch_parameters()]
        counted: list[Any] = []

        def run(model: nn.Module) -> torch.Tensor:
            total, count = loss(model, sample)
            counted.append(count)
            return total

        try:
            with fork_generators(), torch.enable_grad():
                with self.counter, self.counter.saving():
                    total = functional_call(_Runner(self.model, run), state, ())
                self.counter.of_node = self._unit_of
                with self.counter:
                    total.backward()
        finally:
            for handle in handles:
                handle.remove()
        self.count = float(counted[0]) if not hasattr(counted[0], "fake_mode") else float(samples_of(sample))

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
                self.counter.unit, self.counter.inside = number, False
                self.inputs[number] = _flowing((args, kwargs))
                self._spans.append((now(), 0))

            return entered

        def leave(number: int) -> Callable[..., None]:
            def left(block: nn.Module, args: Any, result: Any) -> None:
                self._spans[-1] = (self._spans[-1][0], now())
                self.outputs[number] = _flowing(result)
                self.counter.unit, self.counter.inside = number + 1, False

            return left

        for number, path in enumerate(self.chain, start=1):
            block = self.model.get_submodule(path)
            handles.append(block.register_forward_pre_hook(enter(number), with_kwargs=True))
            handles.append(block.register_forward_hook(leave(number)))
        return handles

    def _watch_split(self) -> list[Any]:
        handles: list[Any] = []
        if self.split is None:
            return handles
        open_at: list[int] = []

        def enter(kind: str) -> Callable[..., None]:
            def entered(layer: nn.Module, args: Any) -> None:
                if not open_at:
                    open_at.append(now())
                # Inside of experts everything is divided.
                self.counter.inside = True if kind == "experts" else kind

            return entered

        def leave(kind: str) -> Callable[..., None]:
            def left(layer: nn.Module, args: Any, result: Any) -> None:
                self.counter.inside = kind == "column"
                if kind in ("row", "experts") and open_at:
                    self._regions.append((open_at.pop(), now()))
                    counted = self.counter.units[self.counter.unit]
                    counted.reduced_bytes += nbytes(result)
                    counted.collectives += 1

            return left

        for path, one in self.split.modules.items():
            if one.style != "inside":
                layer = self.model.get_submodule(path)
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
                    self._users.setdefault(name, set()).add(self.counter.unit)

            return called

        for module in self.model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_pre_hook(ran(module)))
        return handles

    def units_of(self, name: str) -> set[int]:
        """Units in which a module with this parameter runs."""
        return self._users.get(name) or {0}


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
