"""A small part of some exchanges is summed as it is, too: how far what schemes give points the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from distroml.runtime.elastic import heard
from distroml.runtime.typed import norm_of

# So few elements that a step on a 10 Mbit/s link hardly shows them, so many that chance moves a cosine by 0.02.
_ELEMENTS = 4096
# Steps between two samples.
_EVERY = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """Elements spread over one bucket, and their plain sum over the ranks.

    Attributes:
        first: of them.
        stride: from one to the next.
        summed: as they would be without compression.
        nbytes: of what was summed.
    """

    first: int
    stride: int
    summed: torch.Tensor
    nbytes: int

    def cosine(self, flat: torch.Tensor) -> float | None:
        """Of what came out to the plain sum, the same on every rank; None where either is zero. Raises `PeerLost`."""
        came = self._of(flat)
        product, lengths = heard(torch.stack([came.dot(self.summed), norm_of(came) * norm_of(self.summed)]))
        return product / lengths if lengths > 0 else None

    def _of(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self.first :: self.stride][:_ELEMENTS].double()


def take_sample(flat: torch.Tensor, step: int, group: dist.ProcessGroup) -> Sample:
    """Sum a part of `flat` over the ranks; another one in each round of samples. Collective."""
    stride = max(1, flat.numel() // _ELEMENTS)
    first = (step // _EVERY) % stride
    part = flat[first::stride][:_ELEMENTS].clone()
    dist.all_reduce(part, group=group)
    return Sample(first, stride, part.double(), part.nbytes)
