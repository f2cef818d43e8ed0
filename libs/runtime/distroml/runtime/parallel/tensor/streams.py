"""Random numbers that are one tp rank's own: drawn where ranks hold different elements, forgotten behind it.

The own stream starts from one number of the common stream and its end is forgotten, so that a block that is computed
again draws the same masks, and what follows it does not depend on how much was drawn inside.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from distroml.runtime.parallel.randomness import seed_for
from distroml.runtime.typed import generators_of

Common = list[tuple[torch.Generator, torch.Tensor]]
"""The generators that blocks draw from, the CPU's and a GPU's own, each with its state."""


def begin_own(device: torch.device, rank: int) -> Common:
    """From now on random numbers are those of `rank`. Returns what `end_own` needs."""
    # Drawn from the CPU's generator, which the tp ranks share too: a GPU's would have to be waited for.
    seed = seed_for(int(torch.randint(1 << 62, ())), rank)
    common = [(generator, generator.get_state()) for generator in generators_of(device)]
    for generator, _ in common:
        generator.manual_seed(seed)
    return common


def end_own(common: Common) -> None:
    """Random numbers are again those that all tp ranks share."""
    for generator, state in common:
        generator.set_state(state)


@contextmanager
def own_numbers(device: torch.device, rank: int) -> Generator[None]:
    """Within it random numbers are those of `rank`."""
    common = begin_own(device, rank)
    try:
        yield
    finally:
        end_own(common)
