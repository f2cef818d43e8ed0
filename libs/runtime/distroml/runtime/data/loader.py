"""DataLoader: batches of a map-style data set, in an order that any world size can continue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from torch.utils import data as torch_data

from distroml.runtime.data.order import SampleOrder
from distroml.runtime.data.ranges import (
    DataPosition,
    StepRange,
    after,
    microbatches,
    next_range,
    share,
    steps_per_epoch,
)

Sample = TypeVar("Sample", covariant=True)
Batch = TypeVar("Batch")


class MapDataset(Protocol[Sample]):
    """What a data set must offer; `__getitems__(indices)` is used in place of single look-ups where it exists."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True, slots=True)
class StepBatches(Generic[Batch]):
    """What one rank gets for one step: the whole step's range, and this rank's part of it as microbatches."""

    taken: StepRange
    part: StepRange
    batches: list[Batch]


class DataLoader(Generic[Batch]):
    """Feeds `Trainer` one contiguous range of the global sample order per step.

    The order depends on `seed` and the epoch only. Every step consumes `global_batch` samples at any world size,
    also one that does not divide it: ranks then get parts that differ by one sample, and losses are summed and
    divided by the global count, so that every sample weighs the same.

    Args:
        dataset: map-style data set (`__len__`, `__getitem__`).
        global_batch: samples per optimizer step, over all ranks.
        seed: of the order.
        microbatch: most samples of one forward pass; None: a rank's whole part at once.
        shuffle: False keeps the data set's own order in every epoch.
        drop_last: leave out the samples at an epoch's end that do not fill a global batch; False makes a smaller
            last step of them.
        collate: list of samples to batch; default: torch's `default_collate`.
        prefetch: fetch the next step's samples in a thread while the current one computes. Leave it off where the
            data set itself draws random numbers: those would no longer be the same after a restart.

    Raises:
        ValueError: a size below one, an empty data set, or a global batch larger than a data set whose last,
            smaller step is dropped.
    """

    def __init__(
        self,
        dataset: MapDataset[object],
        global_batch: int,
        *,
        seed: int = 0,
        microbatch: int | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
        collate: Callable[[list[object]], Batch] | None = None,
        prefetch: bool = False,
    ) -> None:
        self.size = len(dataset)
        if self.size < 1:
            raise ValueError("the data set is empty: there is nothing to train on; check the path it was read from")
        for name, value in (("global_batch", global_batch), ("microbatch", microbatch)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.dataset = dataset
        self.global_batch = global_batch
        self.seed = seed
        self.microbatch = microbatch
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._collate = collate or cast("Callable[[list[object]], Batch]", cast("Any", torch_data).default_collate)
        next_range(DataPosition(), self.size, global_batch, drop_last=drop_last)  # refuses impossible sizes now
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="distroml-data") if prefetch else None
        self._ahead: tuple[tuple[DataPosition, int, int, int | None], Future[StepBatches[Batch]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return steps_per_epoch(self.size, self.global_batch, drop_last=self.drop_last)

    def step_range(self, position: DataPosition) -> StepRange:
        """The samples that the step at `position` consumes, over all ranks."""
        return next_range(position, self.size, self.global_batch, drop_last=self.drop_last)

    def step_batches(
        self, position: DataPosition, rank: int, world_size: int, microbatch: int | None = None
    ) -> StepBatches[Batch]:
        """This rank's microbatches of the step at `position`; with `prefetch`, starts on the following step's.

        Args:
            position: where the step begins.
            rank: of those that share the step out.
            world_size: how many they are.
            microbatch: most samples of one forward pass, where that is not the loader's own.
        """
        key = (position, rank, world_size, microbatch or self.microbatch)
        ahead, self._ahead = self._ahead, None
        ready = ahead[1].result() if ahead and ahead[0] == key else self._load(*key)
        if self._pool is not None:
            following = (after(ready.taken), *key[1:])
            self._ahead = (following, self._pool.submit(self._load, *following))
        return ready

    def sample(self, size: int | None = None) -> Batch:
        """A batch of the first samples: what a model is tried with before training."""
        return self._fetch(StepRange(0, 0, min(self.size, size or self.microbatch or self.global_batch)))

    def pass_over(self, rank: int, world_size: int, *, together: bool = False) -> Iterator[tuple[Batch, bool]]:
        """This rank's microbatches of one whole pass in order, without dropping the last samples: for evaluation.

        Args:
            rank: of those that share the pass out.
            world_size: how many they are.
            together: all ranks get equally many batches; one that has too few gets others' again.

        Yields:
            A batch, and whether it counts here.
        """
        for start in range(0, self.size, self.global_batch):
            taken = StepRange(0, start, min(self.size, start + self.global_batch))
            pieces = list(microbatches(share(taken, rank, world_size), self.microbatch))
            yield from ((self._fetch(piece), True) for piece in pieces)
            if together:
                # Shares differ by one sample at most, and the last rank has the largest.
                largest = list(microbatches(share(taken, world_size - 1, world_size), self.microbatch))
                yield from ((self._fetch(piece), False) for piece in largest[len(pieces) :])

    def _load(self, position: DataPosition, rank: int, world_size: int, microbatch: int | None) -> StepBatches[Batch]:
        taken = self.step_range(position)
        part = share(taken, rank, world_size)
        return StepBatches(taken, part, [self._fetch(piece) for piece in microbatches(part, microbatch)])

    def _fetch(self, piece: StepRange) -> Batch:
        order = SampleOrder(self.size, self.seed, piece.epoch, self.shuffle)
        indices: list[int] = order.samples(piece.start, piece.stop).tolist()
        fetch_many = cast("Callable[[list[int]], Sequence[object]] | None", getattr(self.dataset, "__getitems__", None))
        samples = list(fetch_many(indices)) if fetch_many else [self.dataset[index] for index in indices]
        return self._collate(samples)
