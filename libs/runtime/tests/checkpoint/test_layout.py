"""Which part of a tensor a rank holds: pure arithmetic, for every mesh."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from distroml.runtime.checkpoint import Rows, UnsupportedState
from distroml.runtime.checkpoint.layout import box_of, whole_pieces


@given(rows=st.integers(0, 20), shards=st.integers(1, 5), tp=st.integers(1, 4))
def test_fsdp_over_tensor_parallel_shards_is_chunks_of_chunks(rows: int, shards: int, tp: int) -> None:
    """What FSDP really does, uneven sizes included: `torch.chunk` of what tensor parallelism left."""
    placements = (_StridedShard(0, split_factor=tp), Shard(0))
    whole = torch.arange(rows)
    for shard, column in itertools.product(range(shards), range(tp)):
        (start,), (size,) = box_of((rows,), (shards, tp), (shard, column), placements, "w")
        local = nth_chunk(nth_chunk(whole, tp, column), shards, shard)
        assert torch.equal(whole[start : start + size], local)


def nth_chunk(tensor: torch.Tensor, count: int, index: int) -> torch.Tensor:
    chunks = tensor.chunk(count)
    return chunks[index] if index < len(chunks) else tensor[:0]


def test_dimensions_and_replicas_are_independent() -> None:
    placements = (Replicate(), Shard(1), Shard(-2))
    assert box_of((6, 8), (2, 2, 3), (1, 1, 2), placements, "w") == ((4, 4), (2, 4))


@pytest.mark.parametrize("placements", [(Partial(), Replicate()), (_StridedShard(0, split_factor=3), Shard(0))])
def test_what_is_no_box_is_refused(placements: tuple[object, ...]) -> None:
    with pytest.raises(UnsupportedState, match="its placement"):
        box_of((8,), (2, 2), (0, 0), placements, "w")


@given(segments=st.lists(st.integers(1, 4), min_size=1, max_size=4), degree=st.integers(1, 4), shards=st.integers(1, 3))
def test_pieces_of_dealt_rows_make_the_whole_once(segments: list[int], degree: int, shards: int) -> None:
    sizes = [segment * degree for segment in segments]
    rows = Rows.dealt(0, sizes, degree)
    whole = torch.arange(rows.count)
    held = torch.cat([whole[start:stop] for start, stop in rows.ranges])
    seen: list[int] = []
    for rank, shard in itertools.product(range(degree), range(shards)):
        box = box_of(
            (rows.count,), (shards, degree), (shard, rank), (_StridedShard(0, split_factor=degree), Shard(0)), "w"
        )
        local = held[box[0][0] : box[0][0] + box[1][0]]
        for piece in whole_pieces(box, rows):
            assert torch.equal(piece.of_local(local), whole[piece.index])
            seen += piece.of_local(local).tolist()
    assert sorted(seen) == whole.tolist()


def test_an_order_that_holds_no_row_once_is_refused() -> None:
    for ranges in (((0, 2), (3, 4)), ((0, 2), (1, 4)), ((2, 4),)):
        with pytest.raises(ValueError, match="do not hold each row once"):
            Rows(0, ranges)
