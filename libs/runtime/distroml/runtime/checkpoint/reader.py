"""A checkpoint out of the object store, through DCP's storage interface; every chunk is verified before it is used."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from os import PathLike

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from distroml.manifest import (
    BytesEntry,
    ChunkRef,
    Keys,
    Manifest,
    ManifestDamaged,
    ManifestError,
    TensorEntry,
    damage_of,
    read_manifest,
)
from distroml.objectstore import NoSuchObject, ObjectDamaged, ObjectStore
from distroml.runtime.checkpoint.errors import CheckpointError, CorruptChunk
from distroml.runtime.checkpoint.fill import Fill, fill_tensor, fill_value
from distroml.runtime.checkpoint.tensors import dtype_of

RANGE_BYTES = 16 * 1024 * 1024
"""Most bytes of one read; neighbouring chunks are read together."""


class ManifestReader(StorageReader):
    """Reads a checkpoint by the hash of its manifest.

    Args:
        store: where the checkpoint lies.
        job: whose it is.
        manifest_hash: which one.
        threads: reads at a time.
    """

    def __init__(self, store: ObjectStore, job: str, manifest_hash: str, *, threads: int = 4) -> None:
        self._store, self._job, self._hash, self._threads = store, job, manifest_hash, max(1, threads)
        self._manifest: Manifest | None = None
        self._tensors: Mapping[tuple[str, tuple[int, ...]], TensorEntry] = {}
        self._values: Mapping[str, BytesEntry] = {}

    @property
    def manifest(self) -> Manifest:
        """The verified manifest, read at first use.

        Raises:
            CorruptChunk: it is missing, damaged, or of another job.
            CheckpointError: it was written by another release.
        """
        if self._manifest is None:
            self._manifest = manifest = self._read_manifest()
            self._tensors = {(e.fqn, e.offsets): e for e in manifest.entries if isinstance(e, TensorEntry)}
            self._values = {e.fqn: e for e in manifest.entries if isinstance(e, BytesEntry)}
        return self._manifest

    def _read_manifest(self) -> Manifest:
        key = Keys(self._job).manifest(self._hash)
        try:
            manifest = read_manifest(self._store.get(key), self._hash)
        except NoSuchObject:
            raise CorruptChunk(self._hash, key, self._hash, f"its manifest {key} is missing") from None
        except (ManifestDamaged, ObjectDamaged) as error:
            raise CorruptChunk(self._hash, key, self._hash, str(error)) from None
        except ManifestError as error:
            raise CheckpointError(str(error)) from None
        if manifest.job != self._job:
            raise CorruptChunk(self._hash, key, self._hash, f"it is a checkpoint of {manifest.job}, not of {self._job}")
        return manifest

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """A reader is for one checkpoint; there is nothing to reset."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """DCP's description of the checkpoint; `planner_data` holds the path of each name."""
        del args, kwargs
        found: dict[str, STORAGE_TYPES] = {}
        for entry in self.manifest.entries:
            if isinstance(entry, BytesEntry):
                found[entry.fqn] = BytesStorageMetadata()
                continue
            whole = found.setdefault(
                entry.fqn,
                TensorStorageMetadata(TensorProperties(dtype=dtype_of(entry.dtype)), torch.Size(entry.shape), []),
            )
            assert isinstance(whole, TensorStorageMetadata)
            whole.chunks.append(ChunkStorageMetadata(torch.Size(entry.offsets), torch.Size(entry.sizes)))
        return Metadata(found, planner_data={entry.fqn: entry.path for entry in self.manifest.entries})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what the plan asks for; complete when this returns.

        Raises:
            CorruptChunk: bytes are not what was saved, or are gone.
            ObjectStoreError: the store did not answer.
        """
        fills = [(item, self._fill(item, planner)) for item in plan.items]
        wanted: dict[ChunkRef, list[tuple[Fill, int]]] = {}
        for _, fill in fills:
            for chunk, begin in fill.chunks():
                wanted.setdefault(chunk, []).append((fill, begin))
        self._read(wanted)
        for item, fill in fills:
            fill.finish()
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, io.BytesIO(fill.data))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _fill(self, item: ReadItem, planner: LoadPlanner) -> Fill:
        fqn, offset = item.storage_index.fqn, item.storage_index.offset
        if item.type is LoadItemType.BYTE_IO:
            return fill_value(self._values[fqn])
        entry = self._tensors[fqn, tuple(offset or ())]
        return fill_tensor(entry, item.storage_offsets, item.lengths, planner.resolve_tensor(item))

    def _read(self, wanted: Mapping[ChunkRef, list[tuple[Fill, int]]]) -> None:
        """Read, verify and hand out every chunk; the first damage found ends it."""
        ranges = list(_ranges(sorted(wanted, key=lambda chunk: (chunk.object, chunk.offset))))
        if len(ranges) == 1 or self._threads == 1:
            for chunks in ranges:
                self._read_range(chunks, wanted)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="checkpoint-read") as pool:
            for done in [pool.submit(self._read_range, chunks, wanted) for chunks in ranges]:
                try:
                    done.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def _read_range(self, chunks: list[ChunkRef], wanted: Mapping[ChunkRef, list[tuple[Fill, int]]]) -> None:
        object = self.manifest.objects[chunks[0].object]
        start, end = chunks[0].offset, max(chunk.offset + chunk.length for chunk in chunks)
        try:
            data = memoryview(self._store.get(object.key, offset=start, length=end - start))
        except NoSuchObject:
            data = None
        except ObjectDamaged as error:
            raise CorruptChunk(self._hash, object.key, chunks[0].sha256, str(error)) from None
        for chunk in chunks:
            begin = chunk.offset - start
            part = None if data is None else data[begin : begin + chunk.length]
            if damage := damage_of(object, chunk, part):
                raise CorruptChunk(self._hash, damage.object_key, damage.chunk_hash, damage.message)
            assert part is not None
            for fill, position in wanted[chunk]:
                fill.take(position, part)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """A checkpoint is named by job and manifest hash, not by a path."""
        del checkpoint_id
        return False


def _ranges(chunks: list[ChunkRef]) -> Iterator[list[ChunkRef]]:
    """Chunks that follow one another in an object, together up to `RANGE_BYTES`."""
    group: list[ChunkRef] = []
    for chunk in chunks:
        if group and (
            chunk.object != group[0].object
            or chunk.offset != group[-1].offset + group[-1].length
            or chunk.offset + chunk.length - group[0].offset > RANGE_BYTES
        ):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group
