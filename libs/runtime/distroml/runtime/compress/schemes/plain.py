"""The sum as it is, and the sum of codes with error feedback."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from distroml.runtime.comm import sent_bytes
from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.layout import Layout
from distroml.runtime.compress.scheme import Round, State, TakenBack, Turn
from distroml.runtime.compress.schemes.exchange import Section, exchange, exchange_bytes, in_two_phases, part_of
from distroml.runtime.compress.schemes.kept import clear_padding, deliver, owned_of, residual_of


@dataclass(frozen=True, slots=True)
class Dense:
    """The plain float32 sum. What a scheme before it kept is told in its first exchange."""

    @property
    def name(self) -> str:
        """See `Scheme`."""
        return "none"

    def prepare(self, layout: Layout, world_size: int, device: torch.device) -> State:
        """See `Scheme`."""
        return State()

    def rounds(self, flat: torch.Tensor, layout: Layout, state: State, turn: Turn) -> Generator[Round, torch.Tensor]:
        """See `Scheme`."""
        deliver(flat, state, turn)
        state.residual = None
        if turn.world_size > 1 and flat.numel():
            flat.copy_((yield Round("sum", flat)))

    def takes_back(self, layout: Layout, world_size: int) -> bool:
        """See `Scheme`."""
        return False

    def sent_bytes(self, layout: Layout, world_size: int) -> int:
        """See `Scheme`."""
        return sent_bytes("sum", 4 * layout.numel, world_size)


@dataclass(frozen=True, slots=True)
class Coded:
    """The sum of codes, each rank feeding back what its code lost (Seide et al., 2014; Karimireddy et al., 2019).

    The owner of a part feeds back what the code of its sum lost, as in DoubleSqueeze (Tang et al., 2019).
    """

    codec: Codec

    @property
    def name(self) -> str:
        """See `Scheme`."""
        return self.codec.name

    def prepare(self, layout: Layout, world_size: int, device: torch.device) -> State:
        """See `Scheme`. What an owner keeps begins with the first exchange, where its rank is known."""
        return State(torch.zeros(layout.numel, device=device))

    def rounds(self, flat: torch.Tensor, layout: Layout, state: State, turn: Turn) -> Generator[Round, torch.Tensor]:
        """See `Scheme`. A world of one loses nothing, and is told all that was kept."""
        if turn.world_size == 1:
            deliver(flat, state, turn)
            return
        if in_two_phases([(self.codec, flat.numel())], turn.world_size):
            part = part_of(flat.numel(), turn.world_size, turn.rank)
        else:
            part = slice(0, 0)
        residual, owned = residual_of(flat, state), owned_of(flat, state, part)
        try:
            yield from exchange([Section(self.codec, flat, residual, owned, turn.unit, turn.finite)], turn)
        except TakenBack:
            clear_padding(flat, layout, state)
            raise
        clear_padding(flat, layout, state)

    def takes_back(self, layout: Layout, world_size: int) -> bool:
        """See `Scheme`."""
        return world_size > 1 and not in_two_phases([(self.codec, layout.numel)], world_size)

    def sent_bytes(self, layout: Layout, world_size: int) -> int:
        """See `Scheme`."""
        return exchange_bytes([(self.codec, layout.numel)], world_size)
