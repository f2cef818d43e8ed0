"""Random numbers that are one tp rank's own: drawn where ranks hold different elements, forgotten behind it.

The own stream starts from one number of the common stream and its end is forgotten, so that a block that is computed
again draws the same masks, and what follows it does not depend on how much was drawn inside.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from distroml.runtime.parallel.randomness import seed_for
from distroml.runtime.typed import seed_generators

Common = tuple[torch.Tensor, torch.Tensor | None]
"""State of the CPU's generator, and of a GPU's."""


def begin_own(device: torch.device, rank: int) -> Common:
    """From now on random numbers are those of `rank`. Returns what `end_own` needs."""
    # Drawn from the CPU's generator, which the tp ranks share too: a GPU's would have to be waited for.
    drawn = int(torch.randint(1 << 62, ()))
    cuda: Any = torch.cuda
    common = torch.get_rng_state(), cuda.get_rng_state(device) if device.type == "cuda" else None
    seed_generators(seed_for(drawn, rank))
    return common


def end_own(common: Common) -> None:
    """Random numbers are again those that all tp ranks share."""
    cpu, gpu = common
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)


@contextmanager
def own_numbers(device: torch.device, rank: int) -> Generator[None]:
    """Within it random numbers are those of `rank`."""
    common = begin_own(device, rank)
    try:
        yield
    finally:
        end_own(common)
