"""What ranks ask of one another beside their exchanges: means and minima of a few numbers, how fast the link is."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distroml.runtime.comm import sent_bytes
from distroml.runtime.comm.lane import Job
from distroml.runtime.elastic import heard


@dataclass(slots=True)
class Asked:
    """A question that is under way.

    Attributes:
        values: of this rank, then their means; the seconds of the probe behind them, float64.
        least: of this rank, then their minima over the ranks.
        probed_bytes: that one rank sent in the probe; 0 where there was none. Known after `wait`.
        job: that answers it.
    """

    values: torch.Tensor
    least: torch.Tensor
    probed_bytes: int = 0
    job: Job | None = None

    def wait(self) -> tuple[list[float], float]:
        """The values' means and the seconds of the probe, the same on every rank. Raises `PeerLost`."""
        job, self.job = self.job, None
        if job is not None:
            job.wait()
        *means, probed_s = heard(self.values)
        return means, probed_s


def answer(group: dist.ProcessGroup, asked: Asked, probe_bytes: int) -> None:
    """Answer on the exchange's thread, by sums of the back end's own: a probe is of links, not of algorithms."""
    ranks, device = group.size(), asked.values.device
    if probe_bytes:
        message = torch.zeros(probe_bytes // 4, device=device)
        # Timed from when all are there: else a rank that comes late looks like a slow link.
        dist.all_reduce(torch.zeros(1, device=device), group=group)
        _synchronise(device)
        started = time.perf_counter()
        dist.all_reduce(message, group=group)
        _synchronise(device)
        asked.values[-1] = time.perf_counter() - started
        asked.probed_bytes = sent_bytes("sum", message.nbytes, ranks)
    dist.all_reduce(asked.values, group=group)
    asked.values /= ranks
    dist.all_reduce(asked.least, op=dist.ReduceOp.MIN, group=group)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
