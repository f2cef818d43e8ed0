"""Gradients of a model whose parameters are divided over ranks: summed along the replicas, measured, scaled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from distroml.planner.plan import Axis
from distroml.runtime.comm.algorithms import AllReduce
from distroml.runtime.elastic import Pending, communication
from distroml.runtime.parallel.buckets import BucketSpec, Segment, Start
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.departures import Departures
from distroml.runtime.parallel.layouts import divided_axes, lay_out_apart
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.sharding import Reached
from distroml.runtime.typed import norm_of, split_flat

_SUMMED: tuple[Axis, ...] = ("tp", "dp_shard", "pp")


class Gradients(Protocol):
    """The gradients of one step on one rank: `begin()`, backward passes, `flush()`, `wait()`, then norm and scale.

    `wait_s` counts seconds of waiting for other ranks.
    """

    wait_s: float

    @property
    def last(self) -> bool:
        """Whether the backward pass is the step's last one; set before it."""
        ...

    @last.setter
    def last(self, last: bool) -> None: ...

    @property
    def starts(self) -> Sequence[Start]:
        """The step's exchanges along dp_replicate, in the order in which they begin on every replica."""
        ...

    @property
    def alike(self) -> frozenset[int]:
        """Numbers of buckets that further ranks hold alike than those along dp_replicate."""
        ...

    def begin(self) -> None:
        """A new step: no gradient is there yet."""
        ...

    def flush(self) -> list[bool]:
        """All backward passes are done. Returns for each trainable parameter of the model whether they reached it."""
        ...

    def wait(self) -> None:
        """Return when all sums are there. Raises `PeerLost`."""
        ...

    def drop_unused(self, used: Sequence[bool]) -> None:
        """Parameters that no rank reached get no gradient, as in one process."""
        ...

    def norm(self) -> torch.Tensor:
        """The 2-norm of the whole model's gradient as it is now, bit-equal on every rank. Collective."""
        ...

    def scale(self, factor: torch.Tensor | float) -> None:
        """Multiply all gradients by `factor`."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _lying_in(part: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A gradient of `parameter` of which `part` is this rank's."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


class DividedGradients:
    """`Gradients` of parameters that lie divided over dp_shard, tp or pp; sums along dp_replicate once per step.

    Torch sums along dp_shard and tp itself, during the backward passes. Local parts are summed along dp_replicate in
    flat buckets, each as soon as its gradients are whole (`Departures`). After the passes come parameters that are
    whole on every tp rank, and tied ones, which are summed over the stages that hold them first.
    """

    def __init__(
        self,
        held: Sequence[tuple[str, nn.Parameter]],
        mesh: Mesh,
        *,
        names: Sequence[str],
        counted: Mapping[str, bool],
        bucket_mb: float,
        reached: Reached,
        sum_tied: Callable[[], None] | None,
        partial: Collection[str] = (),
        tied: Collection[str] = (),
        closing: Collection[str] = (),
        exchange: CompressedExchange | None = None,
        sums: AllReduce | None = None,
    ) -> None:
        """Take over the gradients of `held`.

        Args:
            held: this rank's trainable parameters by their names in the whole model.
            mesh: of the plan.
            names: all trainable parameters of the whole model, in its order.
            counted: by name, whether this stage's copy of a parameter counts in the norm.
            bucket_mb: size of one exchange along dp_replicate.
            reached: what the backward passes of a step reach.
            sum_tied: sums gradients of parameters that several stages hold.
            partial: names of parameters that are whole on every tp rank, with gradients that are summed along tp.
            tied: names of parameters that several stages hold, in an order that all ranks know.
            closing: names of parameters whose gradients are whole at the very end of the passes.
            exchange: sums along dp_replicate with compression; None: without.
            sums: along dp_replicate without compression; None where there is nothing to sum.
        """
        self.parameters = list(held)
        if not names:
            raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
        self._mesh = mesh
        self._places = {name: place for place, name in enumerate(names)}
        self._counted = counted
        self._reached = reached
        self._sum_tied = sum_tied
        self._partial = [parameter for name, parameter in held if name in partial]
        self._layout: dict[int, BucketSpec] = {}
        self._exchange = exchange
        self._sums = sums
        parts = [(name, nn.Parameter(local_of(p.detach()), requires_grad=False)) for name, p in held]
        if exchange is not None or sums is not None:
            self._layout = lay_out_apart(held, parts, list(tied), bucket_mb, partial=partial, closing=closing)
        self._departures = Departures(
            self._layout,
            self.parameters,
            self._begin,
            late={*partial, *tied},
            closing=closing,
            last=lambda: self.last,
            staged=mesh.plan.pp > 1,
        )
        self._alike = frozenset(
            number for number, spec in self._layout.items() if self._is_alike(*held[spec.segments[0].index], tied)
        )
        self._flying: list[tuple[Pending, torch.Tensor]] = []
        # Of parameters whose bucket has begun: whether this step's passes had reached them. Now each has a gradient.
        self._fired: dict[str, bool] = {}
        self.last = False
        self.wait_s = 0.0

    def _is_alike(self, name: str, parameter: nn.Parameter, tied: Collection[str]) -> bool:
        return name in tied or (self._mesh.group("tp") is not None and "tp" not in divided_axes(parameter))

    @property
    def alike(self) -> frozenset[int]:
        """See `Gradients`."""
        return self._alike

    @property
    def layout(self) -> dict[int, BucketSpec]:
        """Buckets along dp_replicate by number; none where there is nothing to sum."""
        return self._layout

    @property
    def starts(self) -> list[Start]:
        """See `Gradients`."""
        return self._departures.starts

    def begin(self) -> None:
        """See `Gradients`."""
        for _, parameter in self.parameters:
            parameter.grad = None
        self._reached.begin()
        self._flying.clear()
        self._fired.clear()
        self._departures.open()
        self.last = False
        self.wait_s = 0.0

    def stage_passed(self, parameters: Iterable[nn.Parameter]) -> None:
        """All backward passes of a pipeline's stage with these parameters are done."""
        self._departures.stage_passed(parameters)

    def flush(self) -> list[bool]:
        """See `Gradients`."""
        fired = [False] * len(self._places)
        for name, parameter in self.parameters:
            fired[self._places[name]] = self._fired.get(name, parameter in self._reached)
        self._departures.passed()
        self._sum_partial()
        if self._sum_tied is not None:
            self._sum_tied()
        self._departures.rest()
        return fired

    def _begin(self, number: int) -> None:
        if self._exchange is not None and self._exchange.idle(number):
            return
        spec, unreached = self._layout[number], list[Segment]()
        flat = torch.zeros(spec.numel, dtype=spec.dtype, device=spec.device)
        with torch.no_grad():
            for segment in spec.segments:
                name, parameter = self.parameters[segment.index]
                self._fired[name] = parameter in self._reached
                if not self._fired[name]:
                    unreached.append(segment)
                part = flat[segment.offset : segment.offset + segment.numel].view(segment.shape)
                if parameter.grad is not None:
                    part.copy_(local_of(parameter.grad))
                # From here on the gradient lies in the bucket: what it was goes, and its sum needs no copy.
                parameter.grad = _lying_in(part, parameter)
        if self._exchange is not None:
            pending = self._exchange.begin(number, spec, flat, unreached)
        else:
            assert self._sums is not None
            pending = self._sums.start(flat)
        self._flying.append((pending, flat))

    def _sum_partial(self) -> None:
        owns = [local_of(parameter.grad) for parameter in self._partial if parameter.grad is not None]
        if owns:
            flat = torch.cat([own.reshape(-1) for own in owns])
            with communication():
                dist.all_reduce(flat, group=self._mesh.group("tp"))
            for own, part in zip(owns, split_flat(flat, [own.numel() for own in owns]), strict=True):
                own.copy_(part.view(own.shape))

    def wait(self) -> None:
        """See `Gradients`."""
        started = time.perf_counter()
        for pending, flat in self._flying:
            pending.wait()
            if flat.is_cuda:
                # It was made on the stream on which sharding sums.
                flat.record_stream(torch.cuda.current_stream(flat.device))
        self._flying.clear()
        self.wait_s += time.perf_counter() - started

    def drop_unused(self, used: Sequence[bool]) -> None:
        """See `Gradients`."""
        dropped = [(name, parameter) for name, parameter in self.parameters if not used[self._places[name]]]
        for _, parameter in dropped:
            parameter.grad = None
        if self._exchange is not None:
            self._exchange.take_back([name for name, _ in dropped])

    def norm(self) -> torch.Tensor:
        """See `Gradients`."""
        device = self._mesh.world.device
        owns = [
            local_of(parameter.grad)
            for name, parameter in self.parameters
            if parameter.grad is not None and self._counts(name, parameter)
        ]
        squares = [norm_of(own).double().square() for own in owns if own.numel()]
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
        for axis in _SUMMED:
            group = self._mesh.group(axis)
            if group is not None:
                with communication():
                    dist.all_reduce(total, group=group)
        return total.sqrt()

    def _counts(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether this rank's elements of a gradient are among those that are added up: each element once."""
        if not self._counted[name]:
            return False
        divided = divided_axes(parameter)
        return all(axis in divided or self._mesh.place[axis] == 0 for axis in ("tp", "dp_shard"))

    def scale(self, factor: torch.Tensor | float) -> None:
        """See `Gradients`."""
        for _, parameter in self.parameters:
            if parameter.grad is not None:
                local_of(parameter.grad).mul_(factor)

    def close(self) -> None:
        """See `Gradients`."""
        self._departures.close()
        self._flying.clear()
        for _, parameter in self.parameters:
            parameter.grad = None
