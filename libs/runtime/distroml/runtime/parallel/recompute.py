"""What a backward pass computes again instead of keeping it (Chen et al., arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import CheckpointPolicy

from distroml.planner.plan import Recompute

_aten = torch.ops.aten
_torch = cast("Any", torch_checkpoint)

KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.convolution.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operations whose results "selective" keeps: matrix products and attention. All else is cheap to compute again."""


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    del context, args, kwargs
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


class _Recomputed:
    """A block's forward that keeps its inputs only. On the object, so that class and names stay the user's."""

    def __init__(self, forward: Callable[..., Any], kind: Recompute) -> None:
        self.forward = forward
        self._more: dict[str, Any] = {}
        if kind == "selective":
            self._more["context_fn"] = partial(_torch.create_selective_checkpoint_contexts, _policy)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return _torch.checkpoint(
            self.forward, *args, use_reentrant=False, preserve_rng_state=True, **self._more, **kwargs
        )


def recompute(blocks: Sequence[nn.Module], kind: Recompute) -> None:
    """Make each block keep what `kind` says, and compute the rest again when its gradient is wanted."""
    if kind != "none":
        for block in blocks:
            block.forward = _Recomputed(block.forward, kind)


def keep_all(model: nn.Module) -> None:
    """Undo `recompute` within `model`: one that outlives a generation goes by the next one's plan alone."""
    for module in model.modules():
        if isinstance(own := module.forward, _Recomputed):
            module.forward = own.forward
