"""This rank's part of a model under the whole model's names: what checkpoints save and fill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import Pipeline


class HeldModel(nn.Module):
    """The stages of one rank as one module, by the names that their parameters have in the user's model.

    Of buffers, which every stage has, it holds those that this rank's stages compute with.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        # In a list: these are not this module's own, they only stand in it.
        self._stages = [pipeline.modules]
        self._owner = pipeline.owner
        self._mine = {stage.index for stage in pipeline.modules}

    def _models(self) -> Sequence[nn.Module]:
        return [stage.model for stage in self._stages[0]]

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter once, as its first stage here names it."""
        seen: set[str] = set()
        for stage in self._stages[0]:
            own = dict(stage.named_parameters())
            for name, original in stage.names.items():
                if original not in seen:
                    seen.add(original)
                    yield original, own[name]

    def named_modules(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's own is untyped
        self, *_: Any, **__: Any
    ) -> Iterator[tuple[str, nn.Module]]:
        """The modules of all stages."""
        for model in self._models():
            yield from model.named_modules()

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """What lies here, live."""
        state: dict[str, Any] = {}
        for model in reversed(self._models()):
            parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            for name, value in model.state_dict().items():
                if (
                    not isinstance(value, torch.Tensor)
                    or self._owner.get(name, None) in (None, *self._mine)
                    or name in parameters
                ):
                    state[name] = value
        return state
