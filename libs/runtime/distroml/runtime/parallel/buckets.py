"""The bucket layout: which gradient lies where in which flat buffer. Fixed by the plan before the first step.

Torch's DDP rebuilds its buckets after the first step by the order in which gradients came; a process that starts in
the middle of a run would then sum in another order than one that was there from the start, and with three or more
ranks the bits differ. Here the layout depends on the model and the plan only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Gradients start on cache lines.
_ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """One parameter's place in a bucket: `numel` elements from `offset`; `index` is its place in the model."""

    name: str
    index: int
    offset: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """One flat buffer of `numel` elements, and its segments."""

    dtype: torch.dtype
    device: torch.device
    numel: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """One exchange of a step: bucket `number`; where it is `late`, it begins when the backward passes are over."""

    number: int
    spec: BucketSpec
    late: bool


def lay_out(
    parameters: Sequence[tuple[str, torch.nn.Parameter]], bucket_mb: float, which: Sequence[int] | None = None
) -> tuple[BucketSpec, ...]:
    """Buckets of about `bucket_mb` each, last parameters first: the order in which a backward pass finishes them.

    Args:
        parameters: of the model, in its order.
        bucket_mb: size.
        which: places in `parameters` of those that are wanted; all where it is left out.
    """
    cap_bytes = bucket_mb * (1 << 20)
    buckets: list[BucketSpec] = []
    segments: list[Segment] = []
    kind: tuple[torch.dtype, torch.device] | None = None
    filled = 0

    def close() -> None:
        nonlocal segments, filled
        if segments and kind is not None:
            buckets.append(BucketSpec(kind[0], kind[1], filled, tuple(segments)))
        segments, filled = [], 0

    for index in reversed(range(len(parameters)) if which is None else which):
        name, parameter = parameters[index]
        item = parameter.element_size()
        if kind != (parameter.dtype, parameter.device) or (filled + parameter.numel()) * item > cap_bytes:
            close()
            kind = (parameter.dtype, parameter.device)
        segments.append(Segment(name, index, filled, tuple(parameter.shape)))
        line = max(1, _ALIGN_BYTES // item)
        filled += -(-parameter.numel() // line) * line
    close()
    return tuple(buckets)
