"""Replicas that step by themselves and meet every few steps; after a meeting all have the same parameters, to the bit.

Local SGD (Stich, 2019) with the outer optimizer of DiLoCo (Douillard et al., 2023). What is exchanged is how far each
came, by whatever scheme gradients would be, with the same residuals.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.compress.optim import OuterNesterov, OuterState
from distroml.runtime.elastic import Pending
from distroml.runtime.parallel.buckets import BucketSpec
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.reducer import GradientReducer


class Apart:
    """`Exchange` of gradients that stay where they are."""

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor) -> Pending:
        """See `Exchange`."""
        del number, spec, flat
        return Pending(None)


class Meetings:
    """The outer optimizer of one rank: anchors, that is the parameters of the last meeting, and velocities.

    Buckets are those of the gradients, and so are the buffers: between an optimizer's step and the next backward pass
    nobody else needs them, so that a meeting takes no more memory than anchors and velocities do.

    Args:
        outer: the settings.
        exchange: sums differences over the replicas; its buckets are those of `gradients`.
        gradients: of this rank alone.
    """

    def __init__(self, outer: OuterNesterov, exchange: CompressedExchange, gradients: GradientReducer) -> None:
        self.outer = outer
        self._exchange = exchange
        self._gradients = gradients
        self._states = [OuterState.at(torch.zeros_like(flat)) for flat in gradients.flats]
        self.met = 0
        self.restart(0, {})

    @torch.no_grad()
    def restart(self, step: int, velocities: Mapping[str, torch.Tensor]) -> None:
        """After `step` all ranks have the same parameters; `velocities` are by name, 0 where there is none."""
        for spec, state in zip(self._gradients.layout, self._states, strict=True):
            self._gather(spec, state.anchor)
            state.velocity.zero_()
            for segment in spec.segments:
                found = velocities.get(clean(segment.name))
                if found is not None:
                    part = state.velocity[segment.offset : segment.offset + segment.numel]
                    part.copy_(found.reshape(-1))
        self.met = step

    @torch.no_grad()
    def meet(self, step: int) -> float:
        """Meet after `step`, where that was not done already; gradients are gone then. Collective.

        Returns:
            Seconds of waiting for other ranks.

        Raises:
            PeerLost: another rank is gone.
        """
        if step == self.met:
            return 0.0
        outer, exchange = self.outer, self._exchange
        work = list(zip(self._gradients.layout, self._gradients.flats, self._states, strict=True))
        exchange.open(step)
        pending: list[Pending] = []
        for number, (spec, flat, state) in enumerate(work):
            self._gather(spec, flat)
            outer.difference(flat, state, out=flat)
            pending.append(exchange.begin(number, spec, flat))
        # A mean of differences is their sum over the number of replicas, so that is the unit of residuals.
        exchange.counted(torch.tensor(float(exchange.world_size), dtype=torch.float64, device=work[0][1].device))
        waited = time.perf_counter()
        for one in pending:
            one.wait()
        waited_s = time.perf_counter() - waited
        for spec, flat, state in work:
            outer.meet(flat, flat, state, exchange.world_size)
            self._spread(spec, flat)
        self.met = step
        return waited_s

    def velocities(self) -> dict[str, torch.Tensor]:
        """The outer momentum by parameter, in its shape; equal on every rank."""
        return {
            clean(one.name): state.velocity[one.offset : one.offset + one.numel].view(one.shape)
            for spec, state in zip(self._gradients.layout, self._states, strict=True)
            for one in spec.segments
        }

    def blame(self) -> str:
        """Whose parameters were no finite numbers at the last meeting; empty where all were."""
        names = [f"rank {one.rank} has a {one.parameter}" for one in self._exchange.non_finite]
        return f"{'; '.join(names)} that is no finite number" if names else ""

    def _gather(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        for segment in spec.segments:
            parameter = self._gradients.parameters[segment.index][1]
            flat[segment.offset : segment.offset + segment.numel].copy_(parameter.detach().reshape(-1))

    def _spread(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        for segment in spec.segments:
            parameter = self._gradients.parameters[segment.index][1]
            parameter.copy_(flat[segment.offset : segment.offset + segment.numel].view(segment.shape))
            parameter.grad = None
