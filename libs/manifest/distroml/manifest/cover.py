"""Whether the slices of each tensor cover it exactly once."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence

from distroml.manifest.model import Entry, TensorEntry


def check_cover(entries: Iterable[Entry]) -> str:
    """Empty where every name is whole; else what is wrong with the first one that is not."""
    slices: dict[str, list[TensorEntry]] = {}
    values: set[str] = set()
    for entry in entries:
        if isinstance(entry, TensorEntry):
            slices.setdefault(entry.fqn, []).append(entry)
        elif entry.fqn in values:
            return f"{entry.fqn} appears twice"
        else:
            values.add(entry.fqn)
    for fqn, parts in slices.items():
        if fqn in values:
            return f"{fqn} is both a tensor and a value"
        if problem := _check_tensor(parts):
            return f"{fqn}: {problem}"
    return ""


def _check_tensor(parts: Sequence[TensorEntry]) -> str:
    first = parts[0]
    for part in parts:
        if (part.dtype, part.shape, part.path) != (first.dtype, first.shape, first.path):
            return (
                f"its slices disagree on dtype, shape or path ({first.dtype} {first.shape}, {part.dtype} {part.shape})"
            )
    volume, whole = sum(math.prod(part.sizes) for part in parts), math.prod(first.shape)
    if volume != whole:
        return f"its slices hold {volume} of {whole} elements"
    filled = [part for part in parts if math.prod(part.sizes)]
    if len(filled) > 1 and (not first.shape or _overlap(filled)):
        return "its slices overlap"
    return ""


def _overlap(parts: Sequence[TensorEntry]) -> bool:
    """Sweep along the longest dimension; only slices that are open there can overlap."""
    shape = parts[0].shape
    axis = max(range(len(shape)), key=lambda dim: shape[dim])
    ordered = sorted(parts, key=lambda part: part.offsets[axis])
    open_slices: list[tuple[int, int]] = []
    for index, part in enumerate(ordered):
        start = part.offsets[axis]
        del open_slices[: bisect_right(open_slices, (start, len(ordered)))]
        if any(_intersect(part, ordered[other]) for _, other in open_slices):
            return True
        insort(open_slices, (start + part.sizes[axis], index))
    return False


def _intersect(one: TensorEntry, other: TensorEntry) -> bool:
    return all(
        start < other_start + other_size and other_start < start + size
        for start, size, other_start, other_size in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    )
