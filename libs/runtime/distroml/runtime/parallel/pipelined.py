"""What stands for a model whose parts lie on several ranks, in calls that train nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distroml.runtime.elastic import hearing
from distroml.runtime.parallel.encoding import LateEncoder, late_encoder
from distroml.runtime.parallel.pipeline import Pipeline
from distroml.runtime.typed import seed_generators


class PipelinedModel(nn.Module):
    """Stands for a model whose parts lie on several ranks: calling it gives the whole model's output on all of them.

    Everything else (a configuration, a tokenizer's sizes) is the user's model's own; where its methods call the model
    (generation), they reach all stages.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self.stages = nn.ModuleList(pipeline.modules)
        self._late: LateEncoder | None = None
        first = pipeline.modules[0]
        # Not as an attribute: it would be a second module of that name.
        self.__dict__["_user"] = first.model
        own = first.model.forward

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if first.runs:
                return own(*args, **kwargs)
            late = self._late
            return pipeline.forward(*args, **(kwargs if late is None else late.whole(kwargs)))

        first.model.forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `Pipeline.forward`."""
        return self._pipeline.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(self.__dict__["_user"], name)
            return self._generating(found) if name == "generate" and callable(found) else found

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def generating(*args: Any, **kwargs: Any) -> Any:
            if hasattr(self, "generation_config") and kwargs.setdefault("use_cache", False):
                raise ValueError(
                    "use_cache=True is not possible under a plan with pp above 1: keys and values would lie on the "
                    "ranks of their blocks; leave it out, which gives the same text"
                )
            # All stages must choose the same next tokens, also by chance; a training step seeds each its own way.
            group = self._pipeline.group
            number = torch.randint(1 << 62, ()).to(self._pipeline.device)
            with hearing():
                dist.broadcast(number, dist.get_global_rank(group, 0), group)
                seed = int(number)
            seed_generators(seed)
            with late_encoder(self.__dict__["_user"]) as self._late:
                try:
                    return generate(*args, **kwargs)
                finally:
                    self._late = None

        return generating
