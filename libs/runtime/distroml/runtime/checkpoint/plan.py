"""Which rank writes what, decided alike on every rank without any communication.

Plain tensors and values are the same on every rank of pure data parallelism, and a DTensor says by its mesh and
placements where every other rank's part lies: so each rank can name all write items and who holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import _utils as dtensor_utils  # pyright: ignore[reportPrivateUsage]

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
            yield Held(WriteItem(MetadataIndex(leaf.fqn), WriteItemType.BYTE_IO), 1, everyone)


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
        yield _item(fqn, kind, tensor, offsets, sizes), math.prod(sizes) * tensor.dtype.itemsize


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
    mesh, local = tensor.device_mesh, tensor.to_local()
    check_storable(local, fqn)
    parts: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for coordinate in torch.cartesian_prod(*(torch.arange(extent) for extent in mesh.mesh.shape)).reshape(
        -1, mesh.mesh.ndim
    ):
        place = [int(index) for index in coordinate]
        # torch has no public way to ask for another rank's part; its own planner asks for this rank's the same way.
        sizes, offsets = dtensor_utils._compute_local_shape_and_global_offset(  # pyright: ignore[reportPrivateUsage]
            tensor.shape, tuple(mesh.mesh.shape), place, tensor.placements
        )
        parts.setdefault((tuple(offsets), tuple(sizes)), []).append(int(mesh.mesh[tuple(place)]))
    for (offsets, sizes), holders in parts.items():
        if math.prod(sizes) or not math.prod(tensor.shape):
            item = _item(fqn, WriteItemType.SHARD, tensor, offsets, sizes)
            yield Held(item, math.prod(sizes) * tensor.dtype.itemsize, tuple(sorted(holders)))


def _item(
    fqn: str, kind: WriteItemType, tensor: torch.Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> WriteItem:
    return WriteItem(
        MetadataIndex(fqn, offsets),
        kind,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
            properties=TensorProperties(dtype=tensor.dtype),
            size=torch.Size(tensor.shape),
        ),
    )
