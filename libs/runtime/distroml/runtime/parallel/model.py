"""A model spread by a plan, as a training loop sees it: steps, evaluation, and what a checkpoint takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from distroml.planner import Plan
from distroml.runtime.comm import WireCount
from distroml.runtime.compress import parse_spec, scheme_of
from distroml.runtime.compress.optim import CompressedOptimizer
from distroml.runtime.elastic import Collectives, heard
from distroml.runtime.parallel.alike import agree_on_exchanged
from distroml.runtime.parallel.compression import (
    NO_COMPRESSION,
    Compression,
    replica_exchange,
    shard_gathers,
    shard_sums,
)
from distroml.runtime.parallel.culprits import NonFinite, blame
from distroml.runtime.parallel.divide import Loss, Part
from distroml.runtime.parallel.gathering import whole_of
from distroml.runtime.parallel.gradients import DividedGradients, Gradients, local_of
from distroml.runtime.parallel.keeping import Keeping
from distroml.runtime.parallel.loss import check_loss
from distroml.runtime.parallel.meetings import Apart, Meetings
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.precision import Precision, computing_in
from distroml.runtime.parallel.randomness import seed_pass
from distroml.runtime.parallel.reducer import GradientReducer, SumExchange, fastest_sums
from distroml.runtime.parallel.statistics import average_statistics
from distroml.runtime.parallel.substitutes import substitute_of
from distroml.runtime.parallel.units import own_parameters
from distroml.runtime.typed import backward, norm_of


class ParallelModel:
    """A model spread by a plan. Calling it runs the whole model's forward pass, on all ranks together.

    Outside of `Trainer` a step is `forward_backward(microbatches, step)`, `finish(done)`, then the optimizer's step;
    under plans that only replicate, a loop of one's own may instead use `begin()`, backward passes of **summed**
    losses (with `last_backward()` before the last), `finish((loss, count))`.

    Attributes:
        module: what a loss function is called with.
        plan: how it is spread.
        mesh: the plan's axes.
        gradients: of the current step.
        sums: the algorithms by which gradients are summed along dp_replicate; None: there is nothing to sum.
        meetings: of replicas that step by themselves; None: they sum gradients at every step.
        keeping: what checkpoints have of compression.
    """

    def __init__(
        self,
        part: Part,
        plan: Plan,
        mesh: Mesh,
        *,
        loss: Loss | None,
        names: Sequence[str],
        seed: int,
        precision: Precision,
        compression: Compression = NO_COMPRESSION,
    ) -> None:
        self.module = part.module
        self.plan = plan
        self.mesh = mesh
        self.part = part
        self.collectives = Collectives(mesh.world)
        self._loss = loss
        self._seed = seed
        self._step = 0
        self._precision: Precision = precision
        self._trainable = trainable = [(name, parameter) for name, parameter in part.held if parameter.requires_grad]
        self._plain = plan.world_size == plan.dp_replicate
        self.exchange = replica_exchange(plan, mesh.world, compression, seed)
        self.shard_sums = coded = shard_sums(mesh, part.roots, part.held, compression, seed)
        self.shard_gathers = shard_gathers(mesh, part.roots, compression)
        self.gradients: Gradients
        self.sums = (
            fastest_sums(mesh.world, mesh.group("dp_replicate")) if self.exchange is None else self.exchange.sums
        )
        self.meetings: Meetings | None = None
        # What sums gradients as they come, if anything beyond the plain sum does.
        self._of_gradients = self.exchange if compression.outer is None else None
        self._finders = [one for one in (self._of_gradients, coded) if one is not None]
        if self._of_gradients is not None and coded is not None:
            self._of_gradients.innocent = lambda: bool(coded.non_finite)
        if self._plain:
            exchange = self._of_gradients or SumExchange(self.collectives, self.sums)
            apart = compression.outer is not None
            reducer = GradientReducer(trainable, Apart() if apart else exchange, bucket_mb=plan.bucket_mb)
            layout = dict(enumerate(reducer.layout))
            self.gradients = reducer
            if compression.outer is not None and self.exchange is not None:
                self.meetings = Meetings(compression.outer, self.exchange, reducer)
        else:
            divided = DividedGradients(
                trainable,
                mesh,
                names=names,
                counted=part.counted,
                bucket_mb=plan.bucket_mb,
                reached=part.reached,
                sum_tied=part.pipeline.sum_tied if part.pipeline is not None else None,
                partial=part.split.summed if part.split is not None else (),
                tied=part.pipeline.tied if part.pipeline is not None else (),
                closing=_closing(part),
                exchange=self.exchange,
                sums=self.sums,
            )
            layout = divided.layout
            self.gradients = divided
            if part.pipeline is not None:
                # Before the first pass: within one, sharding shows other parameters.
                stages = {module.index: list(module.parameters()) for module in part.pipeline.modules}
                part.pipeline.on_passed = lambda stage: divided.stage_passed(stages[stage])
        self._dense_bytes = [] if self.exchange is not None else [s.numel * s.dtype.itemsize for s in layout.values()]
        if self.exchange is not None:
            self.exchange.prepare(layout, self.gradients.alike)
        self.keeping = Keeping(
            self.exchange,
            self.meetings,
            trainable,
            plan=plan,
            rank=mesh.world.rank,
            residuals=compression.residuals,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        with self.precision():
            return self.module(*args, **kwargs)

    def precision(self) -> AbstractContextManager[Any]:
        """Within it, forward passes compute in the wanted precision; parameters and gradients stay as they are."""
        return computing_in(self._precision, self.mesh.world.device.type)

    def parameters(self) -> list[nn.Parameter]:
        """This rank's trainable parameters, for an optimizer."""
        return [parameter for _, parameter in self.part.held if parameter.requires_grad]

    def local_tensors(self) -> list[tuple[str, torch.Tensor]]:
        """This rank's part of each parameter, by name."""
        return [(name, local_of(parameter.detach())) for name, parameter in self.part.held]

    def begin(self, step: int = 0) -> None:
        """A new step, by its number; without one, the next."""
        self._step = step or self._step + 1
        self.gradients.begin()
        if self.meetings is not None:
            self.meetings.step = self._step
        if self._of_gradients is not None:
            self._of_gradients.open(self._step)
        if self.shard_sums is not None:
            self.shard_sums.open(self._step)

    def counted(self, terms: torch.Tensor) -> None:
        """The step's global count of loss terms is `terms`: exchanges that need it begin. Before the waits."""
        if self._of_gradients is not None:
            if (substitute := self._of_gradients.substitute) is not None:
                substitute.ready(self.gradients.norm, terms)
            self._of_gradients.counted(terms)

    def last_backward(self) -> None:
        """The next backward pass is this step's last: sums start while it runs."""
        self.gradients.last = True

    def forward_backward(self, batches: Sequence[Any], step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward passes over this rank's microbatches of one step. Collective under most plans.

        Returns:
            The sum of losses and the count of their terms, float64; zeros on ranks whose samples another rank of
            their tp and pp axes tells of.

        Raises:
            PeerLost: another rank is gone.
            TypeError: the loss is no sum and count.
        """
        self.begin(step)
        device = self.mesh.world.device
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        count = torch.zeros((), dtype=torch.float64, device=device)
        dp_rank = self.mesh.dp_rank

        def seed(microbatch: int, stage: int) -> None:
            seed_pass(self._seed, step, dp_rank, microbatch, stage)

        if self.part.pipeline is not None:
            loss_sum, count = self.part.pipeline.forward_backward(batches, seed)
        else:
            if self._loss is None:
                raise ValueError("forward_backward needs a loss function: pass loss= to parallelize")
            for number, batch in enumerate(batches):
                seed(number, 0)
                with self.precision():
                    total, terms = check_loss(self._loss(self.module, batch))
                loss_sum += total.detach()
                count += terms
                if number == len(batches) - 1:
                    self._last_forward_done(count)
                backward(total)
            if not batches:
                self._last_forward_done(count)
        if not self.mesh.tells_loss:
            return torch.zeros_like(loss_sum), torch.zeros_like(count)
        return loss_sum, count

    def _last_forward_done(self, count: torch.Tensor) -> None:
        self.gradients.last = True
        exchange = self._of_gradients
        if exchange is None:
            return
        # The sum of counts is on its way while the last backward pass runs.
        if not self._plain:
            terms = count.detach().clone() if self.mesh.tells_loss else torch.zeros_like(count)
            exchange.announce_sum(terms, self.collectives.sum_async(terms))
        elif not (exchange.substitute and exchange.substitute.needs_all):
            exchange.announce(count)

    def finish(
        self, done: tuple[torch.Tensor, torch.Tensor | int], grad_clip: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make gradients the global sum over the global count, with a norm of at most `grad_clip`.

        Returns:
            The global mean loss, and the gradient's norm before clipping.
        """
        device = self.mesh.world.device
        totals = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=device).detach() for one in done])
        fired = self.gradients.flush()
        tail = torch.tensor([float(reached) for reached in fired], dtype=torch.float64, device=device)
        votes = torch.cat([totals, tail])
        pending = self.collectives.sum_async(votes)
        pending.wait()
        self.counted(votes[1])
        self.gradients.wait()
        self.gradients.drop_unused([reached > 0 for reached in heard(votes)[2:]])
        self.keeping.feed_back(votes[1])
        scale = 1.0 / votes[1]
        norm = self.gradients.norm().double() * scale
        if grad_clip is not None:
            scale = scale * torch.clamp(grad_clip / (norm + 1e-6), max=1.0)
        self.gradients.scale(scale)
        return votes[0] / votes[1], norm

    def sent(self) -> dict[tuple[str, str, str], int]:
        """Bytes that this rank sent for gradients and coded parameters since the last call, by axis, level and scheme.

        What torch itself sums and gathers along dp_shard and tp is not counted. Without compression it is what one step
        sends, however many were made.
        """
        count = WireCount()
        if self.sums is not None:
            for level, sent in (one for size in self._dense_bytes for one in self.sums.sent_bytes(size).items()):
                count.add("dp_replicate", level, "none", sent)
        found = count.take()
        for wire in [one.wire for one in (self.exchange, self.shard_sums, self.shard_gathers) if one is not None]:
            found |= wire.take()
        return found

    def exchange_for(self, optimizer: Optimizer, compression: Compression, step: int) -> None:
        """From the step after `step` on, exchange what `optimizer` goes by, if that is no gradient. Collective.

        Raises:
            CompressionDiffers: other ranks' optimizers go by something else.
            ValueError: that is not possible with this plan or these settings; says why.
            PeerLost: another rank is gone.
        """
        if self.exchange is not None:
            agree_on_exchanged(optimizer, self.collectives)
        if not isinstance(optimizer, CompressedOptimizer):
            return
        name = type(optimizer).__name__
        if compression.adapts or compression.outer is not None:
            other = "compress='auto'" if compression.adapts else "sync_every="
            raise ValueError(f"{name} has an exchange of its own and does not go with {other}; leave that out")
        scheme = parse_spec(compression.scheme)
        optimizer.check(scheme)
        if not self._plain or self.exchange is None:
            raise ValueError(
                f"{name} is not possible with the plan {self.plan}: it knows whole parameters only; use a plan that "
                "only replicates, or another optimizer"
            )
        self.exchange.substitute = substitute_of(optimizer, self._trainable, self.exchange.world_size)
        for steps, then in optimizer.schemes(scheme):
            for buffer in self.exchange.buffers:
                self.exchange.set_scheme(buffer.number, scheme_of(then), step + steps)

    @property
    def non_finite(self) -> tuple[NonFinite, ...]:
        """Gradients that were no finite number in this step, as far as compression found out here; after the waits."""
        return tuple(one for source in self._finders for one in source.non_finite)

    def own_culprits(self) -> tuple[NonFinite, ...]:
        """Where replicas step by themselves, this one's first gradient that is no finite number, as it is now."""
        if self.meetings is None:
            return ()
        gradients = ((name, parameter.grad) for name, parameter in self._trainable if parameter.grad is not None)
        broken = next((name for name, gradient in gradients if not bool(norm_of(gradient).isfinite())), "")
        return (NonFinite(self.mesh.world.rank, broken, self._step),) if broken else ()

    def blame(self, found: Sequence[NonFinite]) -> str:
        """All that ranks have `found` of one step, in words. Collective; raises `PeerLost`."""
        return blame(found, self.collectives) if self._finders or self.meetings is not None else ""

    def measure(
        self, batch: Any, loss: Loss | None = None, name: str = "loss"
    ) -> tuple[torch.Tensor | int, torch.Tensor | int]:
        """Sum and count of a loss over one batch, without gradients; zeros on ranks that don't tell. Collective.

        Args:
            batch: on the device.
            loss: another than the model's own.
            name: of it, one for each.
        """
        loss = loss or self._loss
        if loss is None:
            raise ValueError("measure needs a loss function: pass loss= here or to parallelize")
        with torch.no_grad(), self.precision():
            if self.part.pipeline is not None:
                found = self.part.pipeline.evaluate([batch], loss, name)
            else:
                found = check_loss(loss(self.module, batch))
        return found if self.mesh.tells_loss else (0, 0)

    def synchronise(self) -> None:
        """Give every rank rank 0's parameters and buffers: the start of a run that only replicates."""
        tensors = [tensor.detach() for tensor in (*self.module.parameters(), *self.module.buffers())]
        self.collectives.broadcast(tensors)

    def average_buffers(self) -> None:
        """Average running statistics over data-parallel ranks; where all hold all, other buffers become rank 0's."""
        if self.plan.dp == 1:
            return
        averaged = average_statistics(self.part.roots, self.mesh)
        if self._plain:
            self.collectives.broadcast([buffer for buffer in self.module.buffers() if id(buffer) not in averaged])

    def full_tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Every parameter of the whole model, one at a time, on the CPU of every rank. Collective."""
        mine = dict(self.part.held)
        for name in self.part.counted:
            yield name, whole_of(name, mine.get(name), self.part, self.mesh)

    def close(self) -> None:
        """Take the hooks off the model, end what exchanges gradients, and let go of the mesh."""
        self.gradients.close()
        if self.exchange is not None:
            self.exchange.close()
        self.mesh.close()


def _closing(part: Part) -> frozenset[str]:
    """Names of what sharding gathers with the whole model: it sums their gradients last, wherever they are used."""
    last = {id(own) for root in part.roots if isinstance(root, FSDPModule) for own in own_parameters(root)}
    return frozenset(name for name, parameter in part.held if id(parameter) in last)
