"""DCP's planner interfaces over our leaves: what is no tensor goes through msgspec, never pickle."""

from __future__ import annotations

import io
from collections.abc import MutableMapping
from dataclasses import replace
from typing import cast

import torch
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from distroml.runtime.checkpoint.errors import StateMismatch
from distroml.runtime.checkpoint.plain import decode_plain, encode_plain
from distroml.runtime.checkpoint.plan import Held, assign, held_items
from distroml.runtime.checkpoint.tree import Leaf, Path, flatten, replace_at

State = MutableMapping[str, object]


class PlainSavePlanner(SavePlanner):
    """Plans a save; `plan_alone` does it without any collective, alike on every rank.

    `paths` holds the path of each leaf by its name.
    """

    def __init__(self) -> None:
        self.leaves: dict[str, Leaf] = {}
        self.paths: dict[str, Path] = {}
        self.plan = SavePlan([])
        self._planned: tuple[object, SavePlan] | None = None

    def set_up_planner(
        self, state_dict: State, storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the state whose leaves the following calls are about."""
        del storage_meta, is_coordinator
        self.leaves = flatten(state_dict)
        self.paths = {fqn: leaf.path for fqn, leaf in self.leaves.items()}

    def create_local_plan(self) -> SavePlan:
        """Everything this rank could write (for `dcp.save`, where the coordinator removes duplicates)."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        held = held_items(self.leaves.values(), world_size)
        return SavePlan([entry.item for entry in held if rank in entry.holders], planner_data=self.paths)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Each item to one rank, and DCP's metadata of the whole."""
        held: dict[tuple[MetadataIndex, WriteItemType], tuple[WriteItem, list[int]]] = {}
        paths: dict[str, Path] = {}
        for rank, plan in enumerate(all_plans):
            paths.update(cast("dict[str, Path]", plan.planner_data))
            for item in plan.items:
                held.setdefault((item.index, item.type), (item, []))[1].append(rank)
        items = [Held(item, _size(item), tuple(ranks)) for item, ranks in held.values()]
        plans = [SavePlan(part) for part in assign(items, len(all_plans))]
        plans, metadata = create_default_global_save_plan(plans)
        return plans, replace(metadata, planner_data=paths)

    def plan_alone(self, rank: int, world_size: int) -> SavePlan:
        """This rank's part; made anew only where names, shapes or dtypes of the state changed."""
        signature = (rank, world_size, [_signature(leaf) for leaf in self.leaves.values()])
        if self._planned is None or self._planned[0] != signature:
            items = assign(list(held_items(self.leaves.values(), world_size)), world_size)[rank]
            self._planned = (signature, SavePlan(items))
        self.plan = self._planned[1]
        return self.plan

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Accept the coordinator's plan."""
        self.plan = new_plan
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The item's slice of the tensor that this rank holds, or its value's bytes."""
        leaf = self.leaves[write_item.index.fqn]
        if not isinstance(leaf.value, torch.Tensor):
            return io.BytesIO(encode_plain(leaf.value, leaf.fqn))
        if isinstance(leaf.value, DTensor):
            return leaf.value.to_local().detach()
        data = write_item.tensor_data
        assert data is not None
        tensor = leaf.value.detach()
        if write_item.type is WriteItemType.SHARD:
            tensor = tensor.narrow(0, data.chunk.offsets[0], data.chunk.sizes[0])
        return tensor


class PlainLoadPlanner(LoadPlanner):
    """Plans a load in place. Top-level keys that the state lacks are left out; below a key everything must fit."""

    def __init__(self) -> None:
        self._state: State = {}
        self._leaves: dict[str, Leaf] = {}
        self._metadata = Metadata({})

    def set_up_planner(self, state_dict: State, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """Take the state to load into and what the checkpoint holds."""
        del is_coordinator
        assert metadata is not None
        self._state, self._leaves, self._metadata = state_dict, flatten(state_dict), metadata

    def create_local_plan(self) -> LoadPlan:
        """Reads that fill every leaf.

        Raises:
            StateMismatch: names, shapes or dtypes differ.
        """
        problems = self._missing()
        items: list[ReadItem] = []
        for fqn, leaf in self._leaves.items():
            found = self._metadata.state_dict_metadata.get(fqn)
            if found is None:
                problems.append(f"{fqn} is not in the checkpoint")
            elif isinstance(found, BytesStorageMetadata) or not isinstance(leaf.value, torch.Tensor):
                if isinstance(found, TensorStorageMetadata) or isinstance(leaf.value, torch.Tensor):
                    problems.append(f"{fqn} is a tensor on one side only")
                else:
                    items.append(_read_value(fqn))
            elif problem := _difference(fqn, found, leaf.value):
                problems.append(problem)
            else:
                items += create_read_items_for_chunk_list(fqn, found, local_chunks(leaf.value))
        if problems:
            raise StateMismatch(problems)
        return LoadPlan(items)

    def _missing(self) -> list[str]:
        roots = {leaf.path[0] for leaf in self._leaves.values() if leaf.path}
        paths = cast("dict[str, Path]", self._metadata.planner_data)
        return [
            f"{fqn} is only in the checkpoint"
            for fqn, path in paths.items()
            if fqn not in self._leaves and path and path[0] in roots
        ]

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Every rank reads for itself."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Replace a plain value in the state."""
        leaf = self._leaves[read_item.dest_index.fqn]
        replace_at(self._state, leaf.path, decode_plain(value.getbuffer()))

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """The part of the live tensor that the item fills; writing to it is the load."""
        tensor = self._leaves[read_item.dest_index.fqn].value
        assert isinstance(tensor, torch.Tensor)
        tensor = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            if length != tensor.size(dim):
                tensor = tensor.narrow(dim, offset, length)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Nothing to do: `resolve_tensor` gave the live tensor."""


def local_chunks(tensor: torch.Tensor) -> list[ChunkStorageMetadata]:
    """The slices of the global tensor that this rank holds."""
    if isinstance(tensor, DTensor):
        if tensor.device_mesh.get_coordinate() is None:
            return []
        sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))]
    return [ChunkStorageMetadata(torch.Size([0] * tensor.dim()), torch.Size(tensor.shape))]


def _difference(fqn: str, found: TensorStorageMetadata, tensor: torch.Tensor) -> str:
    if found.size != tensor.shape:
        return f"{fqn} has the shape {tuple(found.size)} in the checkpoint and {tuple(tensor.shape)} here"
    if found.properties.dtype != tensor.dtype:
        return f"{fqn} is {found.properties.dtype} in the checkpoint and {tensor.dtype} here"
    return ""


def _read_value(fqn: str) -> ReadItem:
    nothing = torch.Size((0,))
    return ReadItem(LoadItemType.BYTE_IO, MetadataIndex(fqn), nothing, MetadataIndex(fqn), nothing, nothing)


def _size(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 1
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _signature(leaf: Leaf) -> object:
    if not isinstance(leaf.value, torch.Tensor):
        return leaf.path
    tensor = leaf.value
    mesh = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else ()
    return leaf.path, tensor.shape, tensor.dtype, tensor.layout, mesh
