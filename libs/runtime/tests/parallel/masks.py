"""What each rank of the pool does for tests of dropout: which elements each of its dropouts keeps."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from distroml.runtime.elastic import World
from libs.runtime.tests.parallel.models import Quirks, samples
from libs.runtime.tests.parallel.ranks import part_of, spread

MICROBATCHES = 2


def masks(world: World, plan: str, steps: list[int]) -> list[dict[str, list[str]]]:
    """For each of `steps`: by dropout, a hash of what it kept in each of its calls.

    All ranks and microbatches are given the same samples: what differs comes from the generators alone.
    """
    parallel = spread(world, plan, Quirks(dropout=0.5, width=8), 2)
    kept: dict[str, list[str]] = {}

    def note(name: str) -> Any:
        def called(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            if not hasattr(output, "fake_mode"):
                mask = (output != 0).to(torch.uint8).numpy().tobytes()
                kept.setdefault(name, []).append(hashlib.sha256(mask).hexdigest()[:12])

        return called

    for path, module in parallel.module.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(note(path[path.index("blocks.") :]))
    found: list[dict[str, list[str]]] = []
    batch = part_of(samples(8, 3), 0, 2)
    for step in steps:
        kept.clear()
        parallel.forward_backward([batch] * MICROBATCHES, step)
        found.append(dict(kept))
    parallel.close()
    return found
