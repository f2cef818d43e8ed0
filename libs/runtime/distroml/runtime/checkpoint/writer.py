"""One rank's part of a save into the object store, through DCP's storage interface."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from distroml.manifest import (
    CHUNK_BYTES,
    MAX_EXTRA_BYTES,
    PACK_BYTES,
    BytesEntry,
    Entry,
    Keys,
    KnownChunk,
    ShardManifest,
    TensorEntry,
    chunk_index,
    encode,
    hash_of,
    merge,
    read_manifest,
    read_shard,
)
from distroml.objectstore import ObjectStore
from distroml.runtime.checkpoint.errors import UnsupportedState
from distroml.runtime.checkpoint.packing import PackWriter
from distroml.runtime.checkpoint.planner import PlainSavePlanner
from distroml.runtime.checkpoint.tensors import dtype_name, tensor_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTarget:
    """Which save a rank writes for, as the catalogue opened it."""

    job: str
    save_id: str
    step: int
    generation: int
    rank: int
    world_size: int
    base_manifest_hash: str = ""
    object_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A durable shard manifest."""

    key: str
    sha256: str
    bytes_written: int
    bytes_reused: int


class ManifestWriter(StorageWriter):
    """Writes chunks in packs, then the shard manifest; what the base already holds is not written again.

    `finish` makes one manifest of all shards for callers of `dcp.save`; under the catalogue it is never called.

    Args:
        store: where to write.
        target: the save.
        extra: this rank's small state, encoded.
        known: chunks of the base by hash.
        chunk_bytes: size of a chunk; the last of each tensor slice is shorter.
        pack_bytes: most bytes of a pack.
        cancelled: asked between chunks; True ends the write with `SaveCancelled`.

    Raises:
        UnsupportedState: the extra state is too large.
    """

    def __init__(
        self,
        store: ObjectStore,
        target: SaveTarget,
        *,
        extra: bytes = b"",
        known: Mapping[str, KnownChunk] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        pack_bytes: int = PACK_BYTES,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        if len(extra) > MAX_EXTRA_BYTES:
            raise UnsupportedState("extra", f"it has {len(extra)} bytes, at most {MAX_EXTRA_BYTES}; use a tensor")
        self._store, self._target, self._extra = store, target, extra
        self._keys = Keys(target.job)
        self._known = known or {}
        self._chunk_bytes, self._pack_bytes, self._cancelled = chunk_bytes, pack_bytes, cancelled
        self.written: WrittenShard | None = None
        self.manifest_hash = ""

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """A writer is for one save; there is nothing to reset."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Nothing to add."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Put packs and the shard manifest; durable when this returns.

        Raises:
            ObjectStoreError: the store is full or down; no shard manifest was written.
            SaveCancelled: `cancelled` said so.
        """
        if not isinstance(planner, PlainSavePlanner):
            raise TypeError("ManifestWriter needs a PlainSavePlanner: DCP's default planner pickles plain values")
        prefix = self._target.object_prefix or self._keys.data_of(self._target.save_id)
        packs = PackWriter(
            self._store,
            f"{prefix}r{self._target.rank:05d}-",
            known=self._known,
            chunk_bytes=self._chunk_bytes,
            pack_bytes=self._pack_bytes,
            cancelled=self._cancelled,
        )
        entries = [self._entry(item, planner, packs) for item in plan.items]
        packs.flush()
        shard = ShardManifest(
            job=self._target.job,
            save_id=self._target.save_id,
            step=self._target.step,
            generation=self._target.generation,
            rank=self._target.rank,
            world_size=self._target.world_size,
            base=self._target.base_manifest_hash,
            objects=packs.objects,
            entries=tuple(entries),
            extra=self._extra,
            bytes_written=packs.bytes_written,
            bytes_reused=packs.bytes_reused,
        )
        data = encode(shard)
        sha256 = hash_of(data)
        key = self._keys.shard(self._target.save_id, self._target.rank, sha256)
        self._store.put(key, data)
        self.written = WrittenShard(
            key=key, sha256=sha256, bytes_written=packs.bytes_written, bytes_reused=packs.bytes_reused
        )
        results = [
            WriteResult(item.index, sum(chunk.length for chunk in entry.chunks), (key, sha256))
            for item, entry in zip(plan.items, entries, strict=True)
        ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _entry(self, item: WriteItem, planner: PlainSavePlanner, packs: PackWriter) -> Entry:
        data = planner.resolve_data(item)
        path = planner.paths[item.index.fqn]
        if isinstance(data, io.BytesIO):
            return BytesEntry(fqn=item.index.fqn, path=path, chunks=packs.add(data.getbuffer()))
        assert item.tensor_data is not None
        return TensorEntry(
            fqn=item.index.fqn,
            path=path,
            dtype=dtype_name(data.dtype, item.index.fqn),
            shape=tuple(item.tensor_data.size),
            offsets=tuple(item.tensor_data.chunk.offsets),
            sizes=tuple(item.tensor_data.chunk.sizes),
            chunks=packs.add(tensor_bytes(data, item.index.fqn)),
        )

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Merge the shard manifests of all ranks and put the manifest; its name is `manifest_hash`.

        Raises:
            CannotMerge: a rank's shard manifest is missing, or the parts are not whole.
        """
        del metadata, results
        prefix = f"{self._keys.root}shards/{self._target.save_id}/"
        shards = [
            read_shard(self._store.get(info.key), info.key.rpartition("-")[2])
            for info in self._store.list(prefix, limit=max(1000, 2 * self._target.world_size))
        ]
        data = encode(merge(shards))
        self.manifest_hash = hash_of(data)
        self._store.put(self._keys.manifest(self.manifest_hash), data)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """A save is named by its target, not by a path."""
        del checkpoint_id
        return False


def known_chunks(store: ObjectStore, job: str, manifest_hash: str) -> Mapping[str, KnownChunk]:
    """Chunks of a manifest in the store by hash; raises `ManifestError` or `ObjectStoreError`."""
    return chunk_index(read_manifest(store.get(Keys(job).manifest(manifest_hash)), manifest_hash))
