"""Sums gradients over the ranks while the backward pass is still running."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch.utils.hooks import RemovableHandle

from distroml.runtime.comm.algorithms import AllReduce, Chosen, all_reduce_along
from distroml.runtime.elastic import Collectives, Pending, World
from distroml.runtime.parallel.buckets import BucketSpec, Segment, Start, lay_out
from distroml.runtime.parallel.remembered import cache_folder
from distroml.runtime.typed import norm_of, on_gradient


class Exchange(Protocol):
    """How a bucket's flat buffer becomes the sum over all ranks. Compression schemes take this place."""

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor, unreached: Sequence[Segment] = ()) -> Pending:
        """Start on bucket `number`; every rank calls in the same order. `flat` holds the sum after `wait()`.

        `unreached`: where it has no gradient of this rank in this step, but zeros.
        """
        ...

    def take_back(self, dropped: Collection[str]) -> None:
        """No rank reached these parameters in this step, and nobody heeds what was told of them; after the waits."""
        ...


class SumExchange:
    """The plain sum, without compression: by `sums` where they are given, else as the back end sums."""

    def __init__(self, collectives: Collectives, sums: AllReduce | None = None) -> None:
        self._start = collectives.sum_async if sums is None else sums.start

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor, unreached: Sequence[Segment] = ()) -> Pending:
        """See `Exchange`."""
        return self._start(flat)

    def take_back(self, dropped: Collection[str]) -> None:
        """See `Exchange`: nothing is kept."""


def fastest_sums(world: World, group: dist.ProcessGroup | None) -> Chosen | None:
    """Sums over `group`, by what is fastest between its hosts; None where there is no group. Collective over `world`.

    What was measured is kept, so that later generations on the same hosts sum in the same order. Raises `PeerLost`.

    Args:
        world: of the default process group.
        group: this rank's along one axis; every rank of the world has one, or none has.
    """
    return all_reduce_along(world, group, cache=cache_folder(os.environ)) if group is not None else None


class _Bucket:
    def __init__(self, number: int, spec: BucketSpec) -> None:
        self.number = number
        self.spec = spec
        self.flat = torch.zeros(spec.numel, dtype=spec.dtype, device=spec.device)
        # Places in the model of parameters whose gradients the step's last pass has not brought yet.
        self.missing: set[int] = set()
        self.launched = False

    def open(self) -> None:
        self.missing = {segment.index for segment in self.spec.segments}
        self.launched = False


class GradientReducer:
    """Holds all gradients as views of flat buckets and sums each bucket over the ranks once it is full.

    A step is `begin()`, one or more backward passes with `last` set on the last one, `flush()`, then `wait()`.
    Afterwards every `parameter.grad` is a view of the summed buffers, still without any normalisation. A rank
    without a microbatch calls `begin()`, `flush()`, `wait()` and contributes zeros. Buckets are exchanged in the
    layout's order on every rank, whatever the order in which gradients become ready.
    """

    def __init__(
        self, parameters: Sequence[tuple[str, torch.nn.Parameter]], exchange: Exchange, *, bucket_mb: float
    ) -> None:
        self.parameters = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
        self._exchange = exchange
        self._buckets = [_Bucket(n, spec) for n, spec in enumerate(lay_out(self.parameters, bucket_mb))]
        self._pending: list[Pending] = []
        self._next = 0
        self._fired = [False] * len(self.parameters)
        self.last = False
        self.wait_s = 0.0
        self._views: list[torch.Tensor] = [torch.empty(0)] * len(self.parameters)
        self._handles: list[RemovableHandle] = []
        for bucket in self._buckets:
            for segment in bucket.spec.segments:
                self._attach(bucket, segment)

    @property
    def layout(self) -> tuple[BucketSpec, ...]:
        """The bucket layout."""
        return tuple(bucket.spec for bucket in self._buckets)

    @property
    def starts(self) -> list[Start]:
        """See `Gradients`."""
        return [Start(bucket.number, bucket.spec, late=False) for bucket in self._buckets]

    @property
    def alike(self) -> frozenset[int]:
        """See `Gradients`."""
        return frozenset()

    @property
    def flats(self) -> list[torch.Tensor]:
        """The flat buffers, in the layout's order."""
        return [bucket.flat for bucket in self._buckets]

    def _attach(self, bucket: _Bucket, segment: Segment) -> None:
        parameter = self.parameters[segment.index][1]
        view = bucket.flat[segment.offset : segment.offset + segment.numel].view(parameter.shape)
        self._views[segment.index] = view
        fired = self._fired
        index = segment.index

        def accumulated(parameter: torch.Tensor) -> None:
            if bucket.launched:
                raise RuntimeError(
                    f"a gradient of {segment.name} came after its bucket was summed: the backward pass visits it "
                    "twice; use activation checkpointing with use_reentrant=False"
                )
            # The first pass of a step brings a fresh tensor; later ones were added into the view in place.
            if parameter.grad is not view:
                assert parameter.grad is not None
                view.copy_(parameter.grad)
                parameter.grad = view
            fired[index] = True
            if self.last:
                # A pass may bring a gradient in parts: counted twice, another one would not be waited for.
                bucket.missing.discard(index)
                if not bucket.missing:
                    self._launch_ready()

        self._handles.append(on_gradient(parameter, accumulated))

    def begin(self) -> None:
        """A new step: no gradient is there yet."""
        for _, parameter in self.parameters:
            parameter.grad = None
        for bucket in self._buckets:
            bucket.open()
        self._fired[:] = [False] * len(self._fired)
        self._pending.clear()
        self._next = 0
        self.last = False
        self.wait_s = 0.0

    def _launch_ready(self) -> None:
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._launch(self._buckets[self._next])

    def _launch(self, bucket: _Bucket, unreached: Sequence[Segment] = ()) -> None:
        bucket.launched = True
        self._next += 1
        self._pending.append(self._exchange.begin(bucket.number, bucket.spec, bucket.flat, unreached))

    def flush(self) -> list[bool]:
        """All backward passes are done: exchange what is left; parameters without a gradient count as zero.

        Returns:
            For each parameter whether this rank's passes reached it.
        """
        for bucket in self._buckets[self._next :]:
            unreached = [segment for segment in bucket.spec.segments if not self._fired[segment.index]]
            for segment in unreached:
                view = self._views[segment.index]
                view.zero_()
                self.parameters[segment.index][1].grad = view
            self._launch(bucket, unreached)
        return list(self._fired)

    def wait(self) -> None:
        """Return when all sums are there; adds the time to `wait_s`. Raises `PeerLost`."""
        started = time.perf_counter()
        for pending in self._pending:
            pending.wait()
        self._pending.clear()
        self.wait_s += time.perf_counter() - started

    def drop_unused(self, used: Sequence[bool]) -> None:
        """Parameters that no rank reached get no gradient, as in one process: optimizers then leave them alone."""
        dropped = [place for place, reached in enumerate(used) if not reached]
        for place in dropped:
            # What compression told of it does not count in the norm.
            self._views[place].zero_()
            self.parameters[place][1].grad = None
        self._exchange.take_back([self.parameters[place][0] for place in dropped])

    def norm(self) -> torch.Tensor:
        """The 2-norm of all gradients as they are now, bit-equal on every rank."""
        norms = [norm_of(flat) for flat in self.flats]
        return norms[0] if len(norms) == 1 else norm_of(torch.stack([norm.to(norms[0]) for norm in norms]))

    def scale(self, factor: torch.Tensor | float) -> None:
        """Multiply all gradients by `factor`."""
        for flat in self.flats:
            flat.mul_(factor)

    def close(self) -> None:
        """Take the hooks off the model, and let go of what was under way."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()
        for _, parameter in self.parameters:
            parameter.grad = None
