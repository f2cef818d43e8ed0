"""Which samples a step consumes and how ranks share them: pure arithmetic, the whole of the exact accounting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataPosition:
    """Where the next step begins: `index` samples of `epoch` are consumed."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class StepRange:
    """One step's samples: places `[start, stop)` of the global order of `epoch`."""

    epoch: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def steps_per_epoch(size: int, global_batch: int, *, drop_last: bool) -> int:
    """Optimizer steps in one pass over `size` samples."""
    return size // global_batch if drop_last else -(-size // global_batch)


def next_range(position: DataPosition, size: int, global_batch: int, *, drop_last: bool) -> StepRange:
    """The range the step at `position` consumes; an epoch without a (whole) step left passes over to the next.

    Raises:
        ValueError: no epoch holds a single step.
    """
    if steps_per_epoch(size, global_batch, drop_last=drop_last) < 1:
        raise ValueError(
            f"global_batch {global_batch} is larger than the data set ({size} samples): no step could be made; "
            "lower global_batch, or pass drop_last=False"
        )
    needed = global_batch if drop_last else 1
    if size - position.index < needed:
        position = DataPosition(position.epoch + 1, 0)
    return StepRange(position.epoch, position.index, min(size, position.index + global_batch))


def after(taken: StepRange) -> DataPosition:
    """The position once `taken` is consumed."""
    return DataPosition(taken.epoch, taken.stop)


def share(taken: StepRange, rank: int, world_size: int) -> StepRange:
    """The contiguous part of `taken` that `rank` works on; parts differ by at most one sample and may be empty."""
    length = len(taken)
    return StepRange(
        taken.epoch,
        taken.start + rank * length // world_size,
        taken.start + (rank + 1) * length // world_size,
    )


def microbatches(part: StepRange, microbatch: int | None) -> list[StepRange]:
    """`part` cut into ranges of at most `microbatch` samples, in order; one range where it is None."""
    if not len(part):
        return []
    size = microbatch or len(part)
    return [StepRange(part.epoch, at, min(part.stop, at + size)) for at in range(part.start, part.stop, size)]
