"""One stage: the user's whole model and forward code, of which only its own blocks hold weights and do work.

Blocks before the stage give back what the probe saw, with the received tensors in their places; the first block
behind it ends the pass and hands the tensors on. Parameters of other stages are plain attributes without memory, so
that `parameters()` and `state_dict()` of a stage name what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.doors import Argument, Hole, Place
from distroml.runtime.parallel.pipeline.errors import CutReached
from distroml.runtime.parallel.pipeline.flow import Flow, Run, StageFlow
from distroml.runtime.parallel.pipeline.graph import Value

# Wrappers that recomputation and torch.compile put around a block; names are those of the user's model.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class Task:
    """What a stage runs: the user's code on one batch, and the flow of that batch's signature."""

    run: Run
    flow: Flow


@dataclass(slots=True)
class _Pass:
    """One forward pass: tensors by where they are put in, and where they have been seen."""

    flow: Flow
    stage: StageFlow
    arguments: dict[int, dict[trees.Path, torch.Tensor]] = field(default_factory=dict[int, Any])
    results: dict[int, dict[trees.Path, torch.Tensor]] = field(default_factory=dict[int, Any])
    seen: dict[Place, torch.Tensor] = field(default_factory=dict[Place, torch.Tensor])


class StageModule(nn.Module):
    """Stage `index` of a pipeline as a module: received tensors in, tensors to hand on (or the run's result) out.

    `load()` says what the next pass runs. `fully_shard` may be applied to this module, to its own blocks and to
    modules that finish before the stage ends, but not to `model` or to what holds blocks: the pass leaves those by an
    exception in all stages but the last.

    Attributes:
        model: the user's model.
        index: of this stage.
        names: names of the parameters that this stage holds, as in the user's model, by name here.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[str],
        index: int,
        bounds: Sequence[int],
        held: frozenset[str],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the model over: parameters outside of `held` are removed from it.

        Args:
            model: undivided.
            blocks: module paths of the chain.
            index: of this stage.
            bounds: first block of each stage, then the number of blocks.
            held: names of the parameters to keep.
            dtype: in which floating parameters are computed with, where that is not their own.
        """
        super().__init__()
        self.model = model
        self.index = index
        self.is_last = index == len(bounds) - 2
        self._blocks = tuple(blocks)
        self._first, self._stop = bounds[index], bounds[index + 1]
        self._absent: list[tuple[str, str, torch.Size, torch.dtype]] = []
        self._handles: list[Any] = []
        self._task: Task | None = None
        self._pass: _Pass | None = None
        self._remove(held, dtype)
        self.place(torch.device("cpu"))

    @property
    def names(self) -> dict[str, str]:
        """Names of parameters here to their names in the user's model."""
        return {name: original_name(name) for name, _ in self.named_parameters()}

    @property
    def runs(self) -> bool:
        """Whether a pass of this stage is under way."""
        return self._pass is not None

    def load(self, task: Task) -> None:
        """Run `task` in the next forward pass."""
        self._task = task

    def place(self, device: torch.device) -> None:
        """Put what stands for other stages' parameters on `device`; it takes the memory of one number each."""
        for path, name, shape, dtype in self._absent:
            setattr(self.model.get_submodule(path), name, torch.zeros((), dtype=dtype, device=device).expand(shape))

    def install(self) -> None:
        """Make the blocks play their parts, whatever wraps them by now; the last thing that is done to a stage."""
        self.uninstall()
        for number, path in enumerate(self._blocks):
            block = self.model.get_submodule(path)
            if number < self._first:
                self._override(block, self._pass_through(number))
            elif number == self._stop:
                self._override(block, self._reach)
            elif number < self._stop:
                # Compiled blocks must not look into the state of a pass, and sharding must see what comes in.
                enter, leave = _uncompiled(self._enter(number)), _uncompiled(self._leave(number))
                self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                self._handles.append(block.register_forward_hook(leave))

    def uninstall(self) -> None:
        """Give the blocks their own forward back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(self, *received: torch.Tensor) -> Any:
        """The stage's pass over the loaded task.

        Args:
            received: the stage's `receives`, in that order; the first stage gets none that matter.

        Returns:
            The stage's `sends`; on the last stage what the run returned.

        Raises:
            RuntimeError: the pass takes another course than the one that was probed.
        """
        task = self._task
        if task is None:
            raise RuntimeError(f"stage {self.index} has nothing to run: call load() first")
        stage = task.flow.stages[self.index]
        self._pass = _begin(task.flow, stage, received if self.index else ())
        try:
            result = task.run(self.model)
        except CutReached:
            return tuple(self._sent(value) for value in stage.sends)
        finally:
            self._pass = None
        if not self.is_last:
            raise RuntimeError(
                f"stage {self.index} came to the end of the model without reaching block {self._blocks[self._stop]}: "
                "its forward pass takes another course than with the sample it was probed with"
            )
        return result

    def _remove(self, held: frozenset[str], dtype: torch.dtype | None) -> None:
        keep = {id(parameter) for name, parameter in self.model.named_parameters() if name in held}
        for path, module in list(cast("Iterator[tuple[str, nn.Module]]", self.model.named_modules())):
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if id(parameter) not in keep:
                    delattr(module, name)
                    computed = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
                    self._absent.append((path, name, parameter.shape, computed))

    def _override(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        block.forward = forward
        self._handles.append(_Override(block))

    def _running(self, number: int) -> _Pass:
        if self._pass is None:
            raise RuntimeError(
                f"block {self._blocks[number]} of stage {self.index} runs outside of the stage's forward pass. Either "
                "the model's own gradient checkpointing runs it: turn that off and let the plan recompute "
                "(recompute=full). Or code calls a part of the model by itself: that needs a plan with pp=1"
            )
        return self._pass

    def _pass_through(self, number: int) -> Callable[..., Any]:
        def pass_through(*args: Any, **kwargs: Any) -> Any:
            running = self._running(number)
            result = running.flow.results[number]
            given: dict[trees.Path, Any] | None = None
            values = running.results.get(number, {})
            device = next(iter(tensors_of((args, kwargs))), torch.zeros(())).device
            leaves: list[Any] = []
            for path, leaf in result.leaves.items():
                if path in values:
                    leaves.append(values[path])
                elif isinstance(leaf, Hole):
                    leaves.append(torch.zeros((), dtype=leaf.dtype, device=device).expand(leaf.shape))
                elif isinstance(leaf, Argument):
                    given = trees.flatten((args, kwargs))[0] if given is None else given
                    leaves.append(given[leaf.path])
                else:
                    leaves.append(leaf)
            return trees.build(leaves, result.shape)

        return pass_through

    def _enter(self, number: int) -> Callable[..., Any]:
        def enter(block: nn.Module, args: Any, kwargs: Any) -> Any:
            running = self._running(number)
            args, kwargs = trees.replaced((args, kwargs), running.arguments.get(number, {}))
            self._look(running, number, "argument", (args, kwargs))
            return args, kwargs

        return enter

    def _leave(self, number: int) -> Callable[..., None]:
        def leave(block: nn.Module, args: Any, result: Any) -> None:
            self._look(self._running(number), number, "result", result)

        return leave

    def _reach(self, *args: Any, **kwargs: Any) -> Any:
        self._look(self._running(self._stop), self._stop, "argument", (args, kwargs))
        raise CutReached

    def _look(self, running: _Pass, number: int, side: str, tree: Any) -> None:
        wanted = [
            place
            for value in running.stage.sends
            for place in value.places
            if place.block == number and place.side == side
        ]
        if wanted:
            leaves, _ = trees.flatten(tree)
            running.seen.update({place: leaves[place.path] for place in wanted if place.path in leaves})

    def _sent(self, value: Value) -> torch.Tensor:
        running = cast("_Pass", self._pass)
        found = next((running.seen[place] for place in value.places if place in running.seen), None)
        if found is None or found.shape != value.shape or found.dtype != value.dtype:
            there = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise RuntimeError(
                f"stage {self.index} should hand on a tensor {tuple(value.shape)} {value.dtype}, but has {there}: its "
                "forward pass takes another course than with the sample it was probed with"
            )
        # A view or a leaf cannot be cut off from its graph in place, as the schedules do, and links send dense memory.
        if found.is_leaf or found._is_view() or not found.is_contiguous():  # pyright: ignore[reportPrivateUsage]
            return found.clone(memory_format=torch.contiguous_format)
        return found


class _Override:
    """A forward on one object in front of its class's; `remove()` takes it away."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def remove(self) -> None:
        if "forward" in vars(self._block):
            del self._block.forward


def _begin(flow: Flow, stage: StageFlow, received: Sequence[torch.Tensor]) -> _Pass:
    running = _Pass(flow, stage)
    if received and len(received) != len(stage.receives):
        raise RuntimeError(f"the stage got {len(received)} tensors instead of {len(stage.receives)}")
    for value, tensor in zip(stage.receives, received, strict=False):
        if tensor.requires_grad:
            # What is sent back must be dense.
            cast("Any", tensor).register_hook(torch.Tensor.contiguous)
        for place in value.places:
            if place.block < stage.first and place.side == "result":
                running.results.setdefault(place.block, {})[place.path] = tensor
            elif place.side == "argument":
                running.arguments.setdefault(place.block, {})[place.path] = tensor
            running.seen[place] = tensor
    return running


def _uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Callable[..., Any]", cast("Any", torch.compiler).disable(hook))


def tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in a tree."""
    return (leaf for leaf in trees.leaves_of(tree) if isinstance(leaf, torch.Tensor))


def original_name(name: str) -> str:
    """A parameter's name in the user's model, from its name in a stage."""
    name = name.removeprefix("model.")
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
