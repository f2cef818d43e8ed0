"""What an exchange's thread is given of a step and of each bucket in it, and what comes of one bucket's exchange."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from distroml.runtime.comm.lane import Job
from distroml.runtime.elastic import Pending, heard
from distroml.runtime.parallel.agreement import Agreed
from distroml.runtime.parallel.buckets import Segment
from distroml.runtime.parallel.buffers import Buffer, Took
from distroml.runtime.parallel.sampling import Sample


@dataclass(slots=True)
class Step:
    """One step's exchanges. They begin once its count of loss terms is announced or known."""

    number: int
    terms: torch.Tensor | None = None
    counting: Pending | None = None
    counted: float | None = None
    held: list[Job] = field(default_factory=lambda: list[Job]())
    told: bool = False
    # Whether any bucket so far had a gradient that is no finite number.
    broken: bool = False
    # Whether nothing at all is compressed in it.
    plain: bool = False
    # Whether ranks share in it what the one before took, and in the next one what it took itself.
    asked: bool = False
    timed: bool = False
    # The bucket of which a part is summed as it is, too.
    sampled: int | None = None

    def unit(self) -> float:
        """The count of loss terms over all ranks; waits for it."""
        if self.counted is None:
            if self.counting is not None:
                self.counting.wait()
            assert self.terms is not None
            (self.counted,) = heard(self.terms)
        return self.counted


@dataclass(frozen=True, slots=True)
class Given:
    """One bucket to exchange.

    Attributes:
        step: that it is of.
        buffer: the bucket's.
        work: this rank's raw gradients, float32 or, in a plain sum, of any kind; becomes the sum.
        unit: the step's count of loss terms.
        told: what this rank tells of them; becomes what all do, unless that travels with codes.
        unreached: parameters that no pass reached on this rank.
    """

    step: Step
    buffer: Buffer
    work: torch.Tensor
    unit: float
    told: torch.Tensor
    unreached: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """How an exchange went; `suspect` is the parameter whose gradient broke it on this rank, if one did."""

    agreed: Agreed
    took: Took
    suspect: str = ""
    sample: Sample | None = None
