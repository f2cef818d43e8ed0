"""Replicas that step by themselves and meet every few steps; after a meeting all have the same parameters, to the bit.

Local SGD (Stich, 2019) with the outer optimizer of DiLoCo (Douillard et al., 2023). What is exchanged is how far each
came, by whatever scheme gradients would be, with the same residuals.

A checkpoint between two meetings has as its model what a meeting then would have made, so that it is one model for
whoever reads it. Anchors and each rank's own parameters beside it let the same world go on as if nothing had been.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import torch

from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.compress.optim import OuterNesterov, OuterState
from distroml.runtime.elastic import Collectives, Pending
from distroml.runtime.parallel.buckets import BucketSpec, Segment
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.reducer import GradientReducer

PARAMETERS = "parameters"
"""Where a state has, under a rank's own, its parameters between two meetings."""


class Apart:
    """`Exchange` of gradients that stay where they are."""

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor, unreached: Sequence[Segment] = ()) -> Pending:
        """See `Exchange`."""
        del number, spec, flat, unreached
        return Pending(None)

    def take_back(self, dropped: Collection[str]) -> None:
        """See `Exchange`: nothing was told."""


class Meetings:
    """The outer optimizer of one rank: anchors, that is the parameters of the last meeting, and velocities.

    Buckets are those of the gradients, and so are the buffers: between an optimizer's step and the next backward pass
    nobody else needs them, so that a meeting takes no more memory than anchors and velocities do.

    `step` is the last one that was begun.

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
        self._met = self.step = 0
        self.resume(0)

    @property
    def between(self) -> bool:
        """Whether steps were made since the last meeting."""
        return self.step > self._met

    @torch.no_grad()
    def resume(
        self,
        step: int,
        velocities: Mapping[str, torch.Tensor] | None = None,
        anchors: Mapping[str, torch.Tensor] | None = None,
        own: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Go on after `step` with parameters that are the same on every rank; tensors are by name.

        Args:
            step: the last one made.
            velocities: of the last meeting; none: 0.
            anchors: of the last meeting, where that was not after `step`.
            own: this rank's parameters then; without them `step` counts as the meeting that its parameters came from.
        """
        for spec, state in zip(self._gradients.layout, self._states, strict=True):
            self._gather(spec, state.anchor)
            state.velocity.zero_()
            self._load(spec, state.velocity, velocities)
            if not anchors:
                continue
            before = OuterState(state.anchor.clone(), state.velocity)
            self._load(spec, before.anchor, anchors)
            if own is not None:
                state.anchor.copy_(before.anchor)
            else:
                state.velocity = self.outer.velocity_after(state.anchor, before)
        self.step = self._met = step
        if anchors and own is not None:
            for name, parameter in self._gradients.parameters:
                parameter.copy_(own[clean(name)])
            self._met = step - 1

    @torch.no_grad()
    def folded(self, collectives: Collectives) -> dict[str, torch.Tensor]:
        """What a meeting now would make of each parameter, by the plain sum; good until the next step. Collective.

        Nothing changes by it. Raises `PeerLost`.
        """
        work = list(zip(self._gradients.layout, self._gradients.flats, self._states, strict=True))
        for spec, flat, state in work:
            self._gather(spec, flat)
            self.outer.difference(flat, state, out=flat)
        for pending in [collectives.sum_async(flat) for _, flat, _ in work]:
            pending.wait()
        for _, flat, state in work:
            copied = OuterState(state.anchor.clone(), state.velocity.clone())
            self.outer.meet(flat, flat, copied, self._exchange.world_size)
        return self._named(self._gradients.flats)

    @torch.no_grad()
    def meet(self, step: int) -> float:
        """Meet after `step`; gradients are gone then. Collective.

        Returns:
            Seconds of waiting for other ranks.

        Raises:
            PeerLost: another rank is gone.
        """
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
        self.step = self._met = step
        return waited_s

    def velocities(self) -> dict[str, torch.Tensor]:
        """The outer momentum of each parameter; equal on every rank."""
        return self._named([state.velocity for state in self._states])

    def anchors(self) -> dict[str, torch.Tensor]:
        """The parameters of the last meeting; equal on every rank."""
        return self._named([state.anchor for state in self._states])

    def blame(self) -> str:
        """Whose parameters were no finite numbers at the last meeting; empty where all were."""
        names = [f"rank {one.rank} has a {one.parameter}" for one in self._exchange.non_finite]
        return f"{'; '.join(names)} that is no finite number" if names else ""

    def _named(self, flats: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Views of flat buffers by parameter."""
        return {
            clean(one.name): flat[one.offset : one.offset + one.numel].view(one.shape)
            for spec, flat in zip(self._gradients.layout, flats, strict=True)
            for one in spec.segments
        }

    @staticmethod
    def _load(spec: BucketSpec, flat: torch.Tensor, found: Mapping[str, torch.Tensor] | None) -> None:
        for segment in spec.segments:
            value = found.get(clean(segment.name)) if found else None
            if value is not None:
                flat[segment.offset : segment.offset + segment.numel].copy_(value.reshape(-1))

    def _gather(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        for segment in spec.segments:
            parameter = self._gradients.parameters[segment.index][1]
            flat[segment.offset : segment.offset + segment.numel].copy_(parameter.detach().reshape(-1))

    def _spread(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        for segment in spec.segments:
            parameter = self._gradients.parameters[segment.index][1]
            parameter.copy_(flat[segment.offset : segment.offset + segment.numel].view(segment.shape))
            parameter.grad = None
