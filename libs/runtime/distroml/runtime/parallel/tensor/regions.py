"""Random numbers inside of split layers: another stream on each tp rank between a column and its row.

Where activations are copies, all tp ranks must draw the same dropout mask; where they are divided, each its own. The
inner stream starts from one number of the common stream and its end is forgotten, so that a block that is computed
again draws the same masks, and what follows it does not depend on how much was drawn inside.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from distroml.runtime.parallel.randomness import seed_for


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return cast("Any", torch.cuda).default_generators[index]
    return cast("Any", torch).default_generator


class Regions:
    """The streams of one rank. `rank` tells its inner stream from the other ranks'."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._outer: torch.Tensor | None = None

    def enter(self, device: torch.device) -> None:
        """What follows is divided. Entering again, from a second column beside the first, changes nothing."""
        if self._outer is None and torch.is_grad_enabled():
            generator = _generator(device)
            drawn = torch.randint(1 << 62, (1,), generator=generator, device=device)
            self._outer = generator.get_state()
            generator.manual_seed(seed_for(int(drawn), self._rank))

    def leave(self, device: torch.device) -> None:
        """What follows is a copy again."""
        if self._outer is not None:
            _generator(device).set_state(self._outer)
            self._outer = None

    def reset(self) -> None:
        """A block begins: whatever an aborted pass left open is of no meaning (recomputation stops in the middle)."""
        self._outer = None
