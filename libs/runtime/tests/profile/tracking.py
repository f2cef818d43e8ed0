"""The peak of a step's memory by torch's trackers.

They see one thread, so that exchanges are made there: each at the moment at which it begins, and in a step of its own
as late as a slow link makes it, when the next one has begun or somebody waits for it. The larger peak counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker

from distroml.runtime.comm.lane import Job
from distroml.runtime.parallel import ParallelModel


class _Late:
    """Does a job once the next one is there, or it is waited for."""

    def __init__(self) -> None:
        self._held: list[Job] = []

    def begin(self, job: Job) -> None:
        """Hold a job, and do the one before it."""
        self.settle()
        self._held.append(job)
        wait = job.wait

        def waited() -> bool:
            self.settle()
            return wait()

        job.wait = waited

    def settle(self) -> None:
        """Do what is held."""
        held, self._held = self._held, []
        for job in held:
            job.do(None)


def peak(
    parallel: ParallelModel,
    optimizer: torch.optim.Optimizer,
    step: Callable[[int], object],
    inputs: Sequence[torch.Tensor] = (),
) -> dict[str, int]:
    """Bytes at the peak of a step, as the trackers name them; the first step makes what lasts.

    Args:
        parallel: the model.
        optimizer: of its parameters.
        step: makes a step of that number.
        inputs: that it computes on.
    """
    step(1)
    exchange = parallel.exchange
    if exchange is None:
        return _tracked(parallel, optimizer, lambda: step(2), inputs)
    exchange._lane.begin = lambda job: job.do(None)
    early = _tracked(parallel, optimizer, lambda: step(2), inputs)
    exchange._lane.begin = _Late().begin
    late = _tracked(parallel, optimizer, lambda: step(3), inputs)
    return max(early, late, key=lambda parts: parts["Total"])


def _tracked(
    parallel: ParallelModel,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], object],
    inputs: Sequence[torch.Tensor],
) -> dict[str, int]:
    if parallel.plan.dp_shard > 1:
        tracker: MemTracker = FSDPMemTracker(parallel.module, optimizer)
        if inputs:
            tracker.track_inputs(tuple(inputs))
    else:
        tracker = MemTracker()
        flats: Sequence[torch.Tensor] = getattr(parallel.gradients, "flats", ())
        tracker.track_external(parallel.module, optimizer, *inputs, *flats)
        tracker.track_external(*kept_tensors(parallel))
    with tracker:
        step()
    snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    found = {str(getattr(kind, "value", kind)): size for kind, size in snapshot.items()}
    if parallel.plan.dp_shard > 1:
        # This tracker takes no notice of what it would be told of from outside.
        found["Other"] = found.get("Other", 0) + sum(one.nbytes for one in kept_tensors(parallel))
        found["Total"] += found["Other"]
    return found


def kept_tensors(parallel: ParallelModel) -> list[torch.Tensor]:
    """What compression and meetings keep from one step to the next."""
    found: list[Any] = []
    for buffer in parallel.exchange.buffers if parallel.exchange is not None else ():
        found += (buffer.state.residual, buffer.state.owned, *buffer.state.extra.values(), buffer.velocity)
    if parallel.meetings is not None:
        found += [*parallel.meetings.anchors().values(), *parallel.meetings.velocities().values()]
    return [one for one in found if one is not None]
