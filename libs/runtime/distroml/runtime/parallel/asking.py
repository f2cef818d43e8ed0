"""What ranks ask of one another beside their exchanges: the least of a few numbers, how fast the link is."""

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
        numbers: of this rank, then the least of any rank, float64: `count` values, the seconds of the probe, and
            whatever else was asked.
        count: of the values.
        probed_bytes: that one rank sent in the probe; 0 where there was none. Known after `wait`.
        job: that answers it.
    """

    numbers: torch.Tensor
    count: int
    probed_bytes: int = 0
    job: Job | None = None

    def wait(self) -> tuple[list[float], float]:
        """The least of each value and of the seconds of the probe, the same on every rank. Raises `PeerLost`."""
        job, self.job = self.job, None
        if job is not None:
            job.wait()
        *values, probed_s = heard(self.numbers[: self.count + 1])
        return values, probed_s

    @property
    def rest(self) -> list[float]:
        """What else was asked, on the thread that answered. Raises `PeerLost`."""
        return heard(self.numbers[self.count + 1 :])


def answer(group: dist.ProcessGroup, asked: Asked, probe_bytes: int) -> None:
    """Answer on the exchange's thread, by sums of the back end's own: a probe is of links, not of algorithms."""
    ranks, device = group.size(), asked.numbers.device
    if probe_bytes:
        message = torch.zeros(probe_bytes // 4, device=device)
        # Timed from when all are there, on the rank that is there last: whoever waits for it would see a slow link.
        dist.all_reduce(torch.zeros(1, device=device), group=group)
        _synchronise(device)
        started = time.perf_counter()
        dist.all_reduce(message, group=group)
        _synchronise(device)
        asked.numbers[asked.count] = time.perf_counter() - started
        asked.probed_bytes = sent_bytes("sum", message.nbytes, ranks)
    dist.all_reduce(asked.numbers, op=dist.ReduceOp.MIN, group=group)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
