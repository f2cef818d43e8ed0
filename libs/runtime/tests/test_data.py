"""The global order, and who gets which part of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.runtime.data import DataLoader, DataPosition, SampleOrder
from distroml.runtime.data.ranges import StepRange, after, microbatches, share


@given(size=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 1000))
def test_an_epoch_visits_each_sample_once(size: int, seed: int, epoch: int) -> None:
    order = SampleOrder(size, seed, epoch).samples(0, size)
    assert np.array_equal(np.sort(order), np.arange(size))


@given(size=st.integers(1, 5000), seed=st.integers(0, 99), data=st.data())
def test_a_range_is_that_part_of_the_whole_order(size: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    order = SampleOrder(size, seed, 0)
    assert np.array_equal(order.samples(start, stop), order.samples(0, size)[start:stop])


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    first = SampleOrder(1000, 1, 0).samples(0, 1000)
    assert np.array_equal(first, SampleOrder(1000, 1, 0).samples(0, 1000))
    for other in (SampleOrder(1000, 2, 0), SampleOrder(1000, 1, 1)):
        assert np.mean(first == other.samples(0, 1000)) < 0.02
    # Recorded: a change of the permutation would make old checkpoints go on with other samples.
    assert SampleOrder(10, 7, 3).samples(0, 10).tolist() == [7, 2, 9, 0, 5, 4, 3, 6, 8, 1]


def test_a_shuffle_looks_random() -> None:
    size = 20_000
    order = SampleOrder(size, 5, 0).samples(0, size).astype(np.float64)
    neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
    place = np.corrcoef(order, np.arange(size))[0, 1]
    assert abs(neighbours) < 0.03
    assert abs(place) < 0.03


def test_a_huge_data_set_costs_no_memory() -> None:
    samples = SampleOrder(10**12, 1, 0).samples(5 * 10**11, 5 * 10**11 + 1000)
    assert len(set(samples.tolist())) == 1000
    assert samples.max() > 9 * 10**11


class Indices:
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 120),
    global_batch=st.integers(1, 40),
    worlds=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    microbatch=st.none() | st.integers(1, 9),
    drop_last=st.booleans(),
)
def test_committed_steps_cover_each_sample_exactly_once_at_any_sequence_of_world_sizes(
    size: int, global_batch: int, worlds: list[int], microbatch: int | None, drop_last: bool
) -> None:
    if drop_last and global_batch > size:
        with pytest.raises(ValueError, match="larger than the data set"):
            DataLoader(Indices(size), global_batch, drop_last=True)
        return
    loader = DataLoader(Indices(size), global_batch, seed=4, microbatch=microbatch, drop_last=drop_last)
    position = DataPosition()
    seen: dict[int, list[int]] = {}
    for world_size in worlds:
        parts = [loader.step_batches(position, rank, world_size) for rank in range(world_size)]
        taken = parts[0].taken
        assert all(part.taken == taken for part in parts)
        assert len(taken) == global_batch or (not drop_last and taken.stop == size)
        drawn = [int(index) for part in parts for batch in part.batches for index in batch]
        expected = SampleOrder(size, 4, taken.epoch).samples(taken.start, taken.stop).tolist()
        assert drawn == expected, "ranks in order hold the step's range in order"
        if microbatch is not None:
            assert all(len(batch) <= microbatch for part in parts for batch in part.batches)
        sizes = [len(part.part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        seen.setdefault(taken.epoch, []).extend(drawn)
        position = after(taken)
    for epoch, drawn in seen.items():
        assert len(set(drawn)) == len(drawn), f"epoch {epoch} repeats a sample"
        whole = size // global_batch * global_batch if drop_last else size
        if epoch < position.epoch:
            assert len(drawn) == whole


def test_prefetch_gives_the_same_batches_also_after_a_jump() -> None:
    plain = DataLoader(Indices(50), 8, seed=1)
    ahead = DataLoader(Indices(50), 8, seed=1, prefetch=True)
    position = DataPosition()
    for jump in (0, 0, 16, 0, 0, 0, 0, 0):
        position = DataPosition(position.epoch, max(0, position.index - jump))
        one, two = plain.step_batches(position, 1, 3), ahead.step_batches(position, 1, 3)
        assert one.taken == two.taken
        assert [batch.tolist() for batch in one.batches] == [batch.tolist() for batch in two.batches]
        position = after(one.taken)


def test_an_error_in_the_data_set_comes_out_of_the_step_that_needs_it() -> None:
    class Broken(Indices):
        def __getitem__(self, index: int) -> int:
            raise OSError("disk gone")

    for prefetch in (False, True):
        with pytest.raises(OSError, match="disk gone"):
            DataLoader(Broken(10), 2, prefetch=prefetch).step_batches(DataPosition(), 0, 1)


def test_many_items_at_once_where_the_data_set_offers_it() -> None:
    class Many(Indices):
        def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
            return [torch.tensor(index + 100) for index in indices]

    batches = DataLoader(Many(10), 4, shuffle=False).step_batches(DataPosition(), 0, 1).batches
    assert batches[0].tolist() == [100, 101, 102, 103]


@given(length=st.integers(0, 200), world_size=st.integers(1, 9), microbatch=st.none() | st.integers(1, 20))
def test_shares_and_microbatches_are_a_partition(length: int, world_size: int, microbatch: int | None) -> None:
    taken = StepRange(0, 17, 17 + length)
    pieces = [p for rank in range(world_size) for p in microbatches(share(taken, rank, world_size), microbatch)]
    places = [place for piece in pieces for place in range(piece.start, piece.stop)]
    assert places == list(range(taken.start, taken.stop))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"global_batch": 0}, "global_batch must be at least 1"),
        ({"global_batch": 2, "microbatch": 0}, "microbatch must be at least 1"),
        ({"global_batch": 11}, "larger than the data set"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DataLoader(Indices(10), **arguments)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        DataLoader(Indices(0), 1)
