"""One optimizer step: microbatches, the sum over ranks, normalisation, the optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distroml.runtime.data import DataLoader, DataPosition, StepRange
from distroml.runtime.elastic import World, check_sums, heard
from distroml.runtime.parallel import NonFinite, ParallelModel
from distroml.runtime.training.apart import OwnStep
from distroml.runtime.training.types import NonFiniteError, StepInfo
from distroml.runtime.training.votes import HEAD, Wish, ballot, tally
from distroml.runtime.typed import floats


@dataclass(frozen=True, slots=True)
class StepDone:
    """A finished step and what the ranks decided at its end."""

    info: StepInfo
    wishes: Wish


@dataclass(slots=True)
class _Flying:
    """A step whose numbers are still on their way from the device."""

    step: int
    taken: StepRange
    report: torch.Tensor
    ready: torch.cuda.Event | None
    learning_rate: float
    step_s: float
    data_wait_s: float
    comm_wait_s: float
    # Gradients that were no finite number, as far as that was found out here before they were summed.
    non_finite: tuple[NonFinite, ...]


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it on `device`; tuples, lists and dicts keep their kind."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, tuple) and hasattr(cast("tuple[Any, ...]", value), "_fields"):
        return type(cast("Any", value))(*(to_device(item, device) for item in cast("tuple[Any, ...]", value)))
    if isinstance(value, list | tuple):
        return type(cast("Any", value))(to_device(item, device) for item in cast("list[Any]", value))
    return value


class Stepper:
    """Makes steps on one rank of one world.

    On the CPU a step's numbers are known, and checked, before the optimizer moves. On CUDA reading them would make
    the host wait for the device, so they are read one step late: `run` then returns the step before, and `settle`
    what is still on its way. Checks then come before the next optimizer step.
    """

    def __init__(
        self,
        *,
        parallel: ParallelModel,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        data: DataLoader[Any],
        world: World,
        grad_clip: float | None,
        stop_at_non_finite: bool,
        wishes: Callable[[], Wish],
    ) -> None:
        self._parallel = parallel
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._data = data
        self._world = world
        self._grad_clip = grad_clip
        self._stop_at_non_finite = stop_at_non_finite
        self._wishes = wishes
        self._flying: _Flying | None = None
        self.moved = 0
        """The step by which parameters were moved last, or are being moved."""
        self._late = world.device.type == "cuda"

    def run(self, step: int, position: DataPosition, *, last: bool = False) -> tuple[StepRange, list[StepDone]]:
        """Make step number `step` with the samples at `position`; replicas meet at the `last` one in any case.

        Returns:
            The samples consumed, and the steps whose numbers became known.

        Raises:
            PeerLost: another rank is gone; parameters are as they were before the step or after it.
            NonFiniteError: the loss, the gradient or, at a meeting, a parameter is no finite number.
            TypeError, ValueError: the loss function does not return a sum and a count above zero.
        """
        started = time.perf_counter()
        device = self._world.device
        mesh = self._parallel.mesh
        work = self._data.step_batches(position, mesh.dp_rank, mesh.dp_size, self._parallel.plan.microbatch)
        data_wait_s = time.perf_counter() - started
        gradients = self._parallel.gradients
        batches = [to_device(batch, device) for batch in work.batches]
        loss_sum, count = self._parallel.forward_backward(batches, step)
        fired = gradients.flush()
        own = OwnStep.of(gradients, count) if self._parallel.meetings is not None else None
        # Which parameters were reached is nobody else's business where replicas step by themselves.
        votes = ballot(loss_sum, count, self._wishes(), fired if own is None else (), device)
        if own is not None:
            votes = own.voted(votes)
        pending = self._parallel.collectives.sum_async(votes)
        waited = time.perf_counter()
        pending.wait()
        self._parallel.counted(votes[1])
        gradients.wait()
        if not all(fired):
            # A replica that steps by itself is one process: what it didn't reach, its optimizer leaves alone.
            gradients.drop_unused(tally(heard(votes)).used if own is None else fired)
        self._parallel.keeping.feed_back(votes[1])
        comm_wait_s = time.perf_counter() - waited
        if own is None:
            scale = 1.0 / votes[1]
            norm = clipped = gradients.norm().double() * scale
        else:
            votes, norm = own.counted(votes, mesh.dp_size)
            scale, clipped = own.scale, own.norm
        if self._grad_clip is not None:
            scale = scale * torch.clamp(self._grad_clip / (clipped + 1e-6), max=1.0)
        done = self._settle()
        flying = _Flying(
            step=step,
            taken=work.taken,
            report=torch.cat([votes, norm.reshape(1)]),
            ready=None,
            learning_rate=float(self._optimizer.param_groups[0]["lr"]),
            step_s=0.0,
            data_wait_s=data_wait_s,
            comm_wait_s=comm_wait_s,
            non_finite=self._parallel.non_finite,
        )
        if self._late:
            flying.report = flying.report.to("cpu", non_blocking=True)
            flying.ready = torch.cuda.Event()
            flying.ready.record(torch.cuda.current_stream(device))
        else:
            self._check(flying)
        gradients.scale(scale)
        self.moved = step
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        flying.comm_wait_s += self._meet(step, last=last)
        flying.step_s = time.perf_counter() - started
        self._flying = flying
        if not self._late:
            done += self._settle()
        return work.taken, done

    def _meet(self, step: int, *, last: bool) -> float:
        """Meet the other replicas where that is due after `step`. Returns the seconds of waiting for them."""
        meetings = self._parallel.meetings
        if meetings is None or not (last or meetings.outer.due(step)):
            return 0.0
        waited_s = meetings.meet(step)
        if self._late:
            # What was met for becomes the model, and goes into checkpoints.
            torch.cuda.current_stream(self._world.device).synchronize()
            check_sums()
        if self._stop_at_non_finite and (blame := meetings.blame()):
            raise NonFiniteError(
                f"after step {step} {blame}; lower the learning rate, clip gradients (grad_clip=1.0), or pass "
                "non_finite='ignore'"
            )
        return waited_s

    def settle(self) -> list[StepDone]:
        """Wait for the numbers of the last step, where they are still on their way."""
        return self._settle()

    def _check(self, flying: _Flying) -> tuple[float, float, float]:
        values = floats(flying.report)
        loss_sum, count, norm = values[0], values[1], values[-1]
        if count <= 0:
            raise ValueError(f"step {flying.step} has no term in its loss: every rank's count is 0")
        loss = loss_sum / count
        if self._stop_at_non_finite and not (math.isfinite(loss) and math.isfinite(norm)):
            # Every rank sees the same numbers, and so comes here.
            # On a GPU the gradients are another step's by now.
            own = () if self._late else self._parallel.own_culprits()
            blame = self._parallel.blame((*flying.non_finite, *own))
            raise NonFiniteError(
                f"step {flying.step} (samples [{flying.taken.start}, {flying.taken.stop}) of epoch "
                f"{flying.taken.epoch}): loss {loss}, gradient norm {norm}{blame}; lower the learning rate, "
                "clip gradients (grad_clip=1.0), look at these samples, or pass non_finite='ignore'"
            )
        return loss, count, norm

    def _settle(self) -> list[StepDone]:
        flying, self._flying = self._flying, None
        if flying is None:
            return []
        if flying.ready is not None:
            flying.ready.synchronize()
            check_sums()
            self._check(flying)
        values = floats(flying.report)
        counted = tally(values[:HEAD])
        info = StepInfo(
            step=flying.step,
            epoch=flying.taken.epoch,
            sample_from=flying.taken.start,
            sample_to=flying.taken.stop,
            loss=counted.loss_sum / counted.count,
            grad_norm=values[-1],
            count=int(counted.count),
            learning_rate=flying.learning_rate,
            step_s=flying.step_s,
            data_wait_s=flying.data_wait_s,
            comm_wait_s=flying.comm_wait_s,
        )
        return [StepDone(info, counted.wishes)]
