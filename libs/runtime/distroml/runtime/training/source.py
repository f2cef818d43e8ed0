"""Where a model comes from: its first weights, and its shape for a later plan."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from distroml.runtime.parallel.weights import WeightSource, record
from distroml.runtime.typed import seed_torch


def hollow_copy(module: nn.Module, device: str) -> nn.Module:
    """A copy of `module` with parameters and buffers of the same shapes, whose values are not set; "meta": no memory.

    What is shared stays shared, which `nn.Module.to_empty` would undo.
    """
    memo: dict[int, torch.Tensor] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device=device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=device)
    return copy.deepcopy(module, memo)


class ModelSource:
    """Makes the model, and makes it new again: from a factory, or from a model and a copy of its first weights.

    The copy is host memory; `settled()` gives it back once a checkpoint is committed. A factory needs none.
    """

    def __init__(self, model: nn.Module | None, factory: Callable[[], nn.Module] | None, seed: int) -> None:
        if (model is None) == (factory is None):
            raise ValueError("give Trainer either model= or model_factory=, not both and not neither")
        self._factory = factory
        self._seed = seed
        self._meta: nn.Module | None = None
        self._initial: dict[str, torch.Tensor] | None = None
        self._buffers: dict[str, torch.Tensor] = {}
        self._module: nn.Module | None = None
        if model is not None:
            self._meta = hollow_copy(model, "meta")
            self._initial = {name: t.detach().to("cpu", copy=True) for name, t in _tensors(model).items()}
            # Tables that no checkpoint holds must outlive the first weights.
            self._buffers = {name: self._initial[name] for name, _ in model.named_buffers()}
            self._module = model
        self._recorded: tuple[nn.Module, WeightSource] | None = None

    @property
    def module(self) -> nn.Module:
        """The whole model, in memory; made when it is first asked for."""
        if self._module is None:
            self._module = self._make()
        return self._module

    def blank(self) -> nn.Module:
        """The whole model's structure; where a factory makes it, without memory."""
        return self.module if self._factory is None else self._record()[0]

    def to_survey(self) -> tuple[nn.Module, WeightSource | None]:
        """The whole model for a planner to look at: with memory, or without it and where its values come from."""
        return (self.module, None) if self._factory is None else self._record()

    def _record(self) -> tuple[nn.Module, WeightSource]:
        assert self._factory is not None
        if self._recorded is None:
            self._recorded = record(self._factory, self._seed)
        return self._recorded

    def _make(self) -> nn.Module:
        assert self._factory is not None
        seed_torch(self._seed)
        made = self._factory()
        if not isinstance(made, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"model_factory must return a torch.nn.Module, got {type(made).__name__}")
        return made

    @property
    def can_reset(self) -> bool:
        """Whether the first weights can still be had."""
        return self._factory is not None or self._initial is not None

    def reset(self) -> None:
        """Give `module` its first weights again, in place."""
        initial = _tensors(self._make()) if self._factory is not None else self._initial
        if initial is None:
            raise RuntimeError("the first weights are gone; pass model_factory= to be able to start again from step 0")
        with torch.no_grad():
            for name, tensor in _tensors(self.module).items():
                tensor.copy_(initial[name])

    def settled(self) -> None:
        """A checkpoint is committed: the copy of the first weights is of no more use."""
        self._initial = None

    def build(self) -> tuple[nn.Module, WeightSource | None]:
        """A model of its own for a plan that takes it apart, and where its first weights come from.

        From a factory it has no memory, and each rank reads the weights of its own part; else it has its first
        weights, as far as they can still be had.
        """
        if self._meta is None:
            blank, source = self._record()
            return hollow_copy(blank, "meta"), source
        made = hollow_copy(self._meta, "cpu")
        # Read once: the link's thread lets go of it.
        known = self._initial or self._buffers
        with torch.no_grad():
            for name, tensor in _tensors(made).items():
                if name in known:
                    tensor.copy_(known[name])
        return made, None


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
