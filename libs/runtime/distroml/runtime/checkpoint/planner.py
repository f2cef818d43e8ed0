"""DCP's planner interfaces over our leaves: what is no tensor goes through msgspec, never pickle."""

from __future__ import annotations

import io
import math
from collections.abc import Container, MutableMapping
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

from distroml.runtime.checkpoint.agreement import OPENED, Agreed
from distroml.runtime.checkpoint.errors import StateMismatch
from distroml.runtime.checkpoint.layout import Piece, local_part, local_pieces, narrow
from distroml.runtime.checkpoint.plain import decode_plain, encode_plain
from distroml.runtime.checkpoint.plan import Held, assign, held_items
from distroml.runtime.checkpoint.tree import Leaf, Path, flatten, replace_at
from distroml.runtime.checkpoint.whole import NOTHING_ELSE, Whole

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
        self._whole = NOTHING_ELSE

    def set_up_planner(
        self, state_dict: State, storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the state whose leaves the following calls are about."""
        del storage_meta, is_coordinator
        self._take(state_dict, (), NOTHING_ELSE)

    def plan_agreed(self, agreed: Agreed) -> SavePlan:
        """This rank's part of what the ranks agreed on; takes its state."""
        self._take(agreed.state, OPENED, agreed.whole)
        self.plan = SavePlan(list(agreed.items))
        return self.plan

    def _take(self, state: State, opened: Container[Path], whole: Whole) -> None:
        self.leaves, self._whole = flatten(state, opened), whole
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
        data = write_item.tensor_data
        assert data is not None
        local = local_part(leaf.value)
        for piece in local_pieces(leaf.value, self._whole.rows_of(leaf.path, leaf.value), leaf.fqn):
            if piece.holds(data.chunk.offsets, data.chunk.sizes):
                return piece.part(local, data.chunk.offsets, data.chunk.sizes)
        raise AssertionError(f"{leaf.fqn} at {tuple(data.chunk.offsets)} is planned for a rank that does not hold it")


class PlainLoadPlanner(LoadPlanner):
    """Plans a load in place. Top-level keys that the state lacks are left out; below a key everything must fit.

    Args:
        whole: the model of which the state is a part: what it has elsewhere may be in the checkpoint too.
    """

    def __init__(self, whole: Whole = NOTHING_ELSE) -> None:
        self._whole = whole
        self._state: State = {}
        self._leaves: dict[str, Leaf] = {}
        self._pieces: dict[str, list[Piece]] = {}
        self._metadata = Metadata({})

    def set_up_planner(self, state_dict: State, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """Take the state to load into and what the checkpoint holds."""
        del is_coordinator
        assert metadata is not None
        # As finely as the checkpoint is: which values lie together depends on what the saving ranks held.
        paths = cast("dict[str, Path]", metadata.planner_data).values()
        opened = {path[:depth] for path in paths for depth in range(1, len(path))}
        self._state, self._leaves, self._metadata = state_dict, flatten(state_dict, opened), metadata
        self._pieces = {
            fqn: self._pieces_of(leaf, leaf.value)
            for fqn, leaf in self._leaves.items()
            if isinstance(leaf.value, torch.Tensor)
        }

    def _pieces_of(self, leaf: Leaf, tensor: torch.Tensor) -> list[Piece]:
        pieces = local_pieces(tensor, self._whole.rows_of(leaf.path, tensor), leaf.fqn)
        return [piece for piece in pieces if math.prod(piece.sizes) or not tensor.numel()]

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
                chunks = [
                    ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes))
                    for piece in self._pieces[fqn]
                ]
                items += create_read_items_for_chunk_list(fqn, found, chunks)
        if problems:
            raise StateMismatch(problems)
        return LoadPlan(items)

    def _missing(self) -> list[str]:
        roots = {leaf.path[0] for leaf in self._leaves.values() if leaf.path}
        paths = cast("dict[str, Path]", self._metadata.planner_data)
        return [
            f"{fqn} is only in the checkpoint"
            for fqn, path in paths.items()
            if fqn not in self._leaves and path and path[0] in roots and not self._whole.has(path)
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
        fqn, number = read_item.dest_index.fqn, read_item.dest_index.index
        tensor = self._leaves[fqn].value
        assert isinstance(tensor, torch.Tensor)
        piece = self._pieces[fqn][number or 0]
        return narrow(piece.of_local(local_part(tensor)), read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Nothing to do: `resolve_tensor` gave the live tensor."""


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
