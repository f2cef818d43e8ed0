"""Which rank writes what, decided alike on every rank without any communication.

Plain tensors and values are the same on every rank of pure data parallelism, and a DTensor says by its mesh and
placements where every other rank's part lies: so each rank can name all write items and who holds them. Where ranks
hold different names or meshes (pipeline stages, groups of shards that are copies of one another) `agreement` asks them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from distroml.runtime.checkpoint.layout import Box, box_of, local_part
from distroml.runtime.checkpoint.tensors import check_storable
from distroml.runtime.checkpoint.tree import Leaf

SPLIT_BYTES = 64 * 1024 * 1024
"""Larger tensors are split by rows, at places that do not depend on the world size."""


@dataclass(frozen=True, slots=True)
class Held:
    """A write item, its bytes, and the ranks that hold its data."""

    item: WriteItem
    size: int
    holders: tuple[int, ...]


def held_items(leaves: Iterable[Leaf], world_size: int) -> Iterator[Held]:
    """Every write item of the state, each with the ranks that could write it."""
    everyone = tuple(range(world_size))
    for leaf in leaves:
        if isinstance(leaf.value, DTensor):
            yield from _of_dtensor(leaf.fqn, leaf.value)
        elif isinstance(leaf.value, torch.Tensor):
            check_storable(leaf.value, leaf.fqn)
            yield from (Held(item, size, everyone) for item, size in _of_tensor(leaf.fqn, leaf.value))
        else:
            yield Held(value_item(leaf.fqn), 1, everyone)


def assign(held: Sequence[Held], world_size: int) -> list[list[WriteItem]]:
    """Each item to one of its holders: largest first, to the one with the least bytes so far, then the lowest rank."""
    load = [0] * world_size
    owner: dict[int, int] = {}
    for index in sorted(range(len(held)), key=lambda index: (-held[index].size, index)):
        rank = min(held[index].holders, key=lambda rank: (load[rank], rank))
        load[rank] += held[index].size
        owner[index] = rank
    plans: list[list[WriteItem]] = [[] for _ in range(world_size)]
    for index, entry in enumerate(held):
        plans[owner[index]].append(entry.item)
    return plans


def _of_tensor(fqn: str, tensor: torch.Tensor) -> Iterator[tuple[WriteItem, int]]:
    for offsets, sizes in row_pieces(tuple(tensor.shape), tensor.dtype.itemsize):
        kind = WriteItemType.TENSOR if sizes == tuple(tensor.shape) else WriteItemType.SHARD
        item = write_item(fqn, kind, tuple(tensor.shape), tensor.dtype, offsets, sizes)
        yield item, math.prod(sizes) * tensor.dtype.itemsize


def row_pieces(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offsets, sizes) of the pieces of a plain tensor: whole rows, at most `SPLIT_BYTES` where a row allows it."""
    row_bytes = math.prod(shape[1:]) * itemsize
    if not shape or shape[0] * row_bytes <= SPLIT_BYTES:
        yield (0,) * len(shape), shape
        return
    rows = max(1, SPLIT_BYTES // row_bytes)
    for start in range(0, shape[0], rows):
        yield (start, *(0,) * (len(shape) - 1)), (min(rows, shape[0] - start), *shape[1:])


def _of_dtensor(fqn: str, tensor: DTensor) -> Iterator[Held]:
    mesh = tensor.device_mesh
    check_storable(local_part(tensor), fqn)
    shape, mesh_shape = tuple(tensor.shape), tuple(int(extent) for extent in mesh.shape)
    parts: dict[Box, list[int]] = {}
    for place in itertools.product(*map(range, mesh_shape)):
        box = box_of(shape, mesh_shape, place, tensor.placements, fqn)
        parts.setdefault(box, []).append(int(mesh.mesh[place]))
    for (offsets, sizes), holders in parts.items():
        if math.prod(sizes) or not math.prod(shape):
            item = write_item(fqn, WriteItemType.SHARD, shape, tensor.dtype, offsets, sizes)
            yield Held(item, math.prod(sizes) * tensor.dtype.itemsize, tuple(sorted(holders)))


def write_item(
    fqn: str,
    kind: WriteItemType,
    shape: Sequence[int],
    dtype: torch.dtype,
    offsets: Sequence[int],
    sizes: Sequence[int],
) -> WriteItem:
    """One box of a tensor to write."""
    return WriteItem(
        MetadataIndex(fqn, offsets),
        kind,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
            properties=TensorProperties(dtype=dtype),
            size=torch.Size(shape),
        ),
    )


def value_item(fqn: str) -> WriteItem:
    """A plain value to write."""
    return WriteItem(MetadataIndex(fqn), WriteItemType.BYTE_IO)
