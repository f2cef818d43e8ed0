"""The object store's side of the catalogue: checking the parts of a save, reading manifests, removing objects.

Blocking; services call it through `asyncio.to_thread`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from distroml.checkpoint.domain import reasons
from distroml.checkpoint.domain.state import OpenSave
from distroml.events import Rejection
from distroml.manifest import (
    CannotMerge,
    ChunkDamage,
    Keys,
    Manifest,
    ManifestError,
    ObjectRef,
    ShardManifest,
    encode,
    hash_of,
    merge,
    reachable,
    read_manifest,
    read_shard,
    verify_chunks,
)
from distroml.objectstore import NoSuchObject, ObjectDamaged, ObjectStore, ObjectStoreFull
from distroml.statestore.failpoint import hit

_REACHES_KEPT = 256
_HEADS_AT_A_TIME = 8
_DAMAGES_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A manifest that is durable, and what it adds up to."""

    manifest_hash: str
    bytes_total: int
    bytes_written: int
    bytes_reused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What reading every chunk of a checkpoint found; at most 20 damages are named."""

    chunks: int
    bytes: int
    damages: tuple[ChunkDamage, ...]


class Objects:
    """Everything the catalogue does with objects."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._reaches: OrderedDict[str, frozenset[str]] = OrderedDict()

    def assemble(self, job: str, project: str, save: OpenSave) -> Merged:
        """Check every part of a completely reported save and put its manifest.

        Raises:
            Rejection: a part is damaged, missing, of another save, or the parts are not whole.
            ObjectStoreDown: nothing is known; try again.
        """
        keys = Keys(job)
        shards = [self._shard(keys, save, rank) for rank in range(save.world_size)]
        base = self._base_objects(keys, save) if any(shard.bytes_reused for shard in shards) else {}
        try:
            manifest = merge(shards, project=project)
        except CannotMerge as error:
            raise Rejection(reasons.NOT_WHOLE, str(error)) from None
        self._check_objects(keys, save, manifest.objects, base)
        data = encode(manifest)
        manifest_hash = hash_of(data)
        hit("checkpoint.manifest")
        try:
            self._store.put(keys.manifest(manifest_hash), data)
        except ObjectStoreFull as error:
            raise Rejection(reasons.STORE_FULL, f"no room for the manifest: {error}") from None
        hit("checkpoint.manifest")
        return Merged(
            manifest_hash=manifest_hash,
            bytes_total=manifest.bytes_total,
            bytes_written=manifest.bytes_written,
            bytes_reused=manifest.bytes_reused,
        )

    def _shard(self, keys: Keys, save: OpenSave, rank: int) -> ShardManifest:
        reported = save.shards[rank]
        if keys.save_of(reported.key) != save.save_id:
            raise Rejection(reasons.FOREIGN_OBJECT, f"{reported.key} is no shard manifest of the save {save.save_id}")
        try:
            shard = read_shard(self._store.get(reported.key), reported.sha256)
        except (ManifestError, NoSuchObject, ObjectDamaged, ValueError) as error:
            raise Rejection(reasons.SHARD_DAMAGED, f"the shard of rank {rank} cannot be used: {error}") from None
        said = shard.job, shard.save_id, shard.generation, shard.step, shard.world_size, shard.rank, shard.base
        meant = keys.job, save.save_id, save.generation, save.step, save.world_size, rank, save.base_manifest_hash
        if said != meant:
            raise Rejection(reasons.NOT_WHOLE, f"the shard of rank {rank} is of another save: {said}, not {meant}")
        return shard

    def _base_objects(self, keys: Keys, save: OpenSave) -> dict[str, int]:
        try:
            base = self.manifest(keys.job, save.base_manifest_hash)
        except (ManifestError, NoSuchObject, ObjectDamaged) as error:
            raise Rejection(reasons.BASE_DAMAGED, f"the base that the save takes chunks from: {error}") from None
        return {object.key: object.size for object in base.objects}

    def _check_objects(self, keys: Keys, save: OpenSave, objects: Iterable[ObjectRef], base: dict[str, int]) -> None:
        own = keys.data_of(save.save_id)

        def check(object: ObjectRef) -> None:
            if not object.key.startswith(own) and base.get(object.key) != object.size:
                raise Rejection(
                    reasons.FOREIGN_OBJECT, f"{object.key} is neither of the save {save.save_id} nor of its base"
                )
            info = self._store.head(object.key)
            if info is None or info.size != object.size:
                found = "is missing" if info is None else f"has {info.size} bytes, not {object.size}"
                raise Rejection(reasons.OBJECT_MISSING, f"{object.key} {found}")

        with ThreadPoolExecutor(_HEADS_AT_A_TIME, thread_name_prefix="checkpoint-head") as pool:
            for _ in pool.map(check, objects):
                pass

    def manifest(self, job: str, manifest_hash: str) -> Manifest:
        """A verified manifest; raises `ManifestError`, `NoSuchObject`, `ObjectDamaged`, `ObjectStoreDown`."""
        return read_manifest(self._store.get(Keys(job).manifest(manifest_hash)), manifest_hash)

    def reach(self, job: str, manifest_hash: str) -> frozenset[str] | None:
        """The objects a manifest needs, None where it cannot be read; raises `ObjectStoreDown`."""
        known = self._reaches.get(manifest_hash)
        if known is None:
            try:
                known = reachable(self.manifest(job, manifest_hash))
            except (ManifestError, NoSuchObject, ObjectDamaged):
                return None
            self._reaches[manifest_hash] = known
            while len(self._reaches) > _REACHES_KEPT:
                self._reaches.popitem(last=False)
        return known

    def needs(self, job: str, manifest_hash: str, object_key: str, chunk_hash: str) -> bool:
        """Whether a manifest needs this chunk of this object, or, without a hash, any of it."""
        try:
            manifest = self.manifest(job, manifest_hash)
        except (ManifestError, NoSuchObject, ObjectDamaged):
            return False
        return any(
            manifest.objects[chunk.object].key == object_key and chunk_hash in ("", chunk.sha256)
            for entry in manifest.entries
            for chunk in entry.chunks
        )

    def verify(self, job: str, manifest_hash: str) -> Verdict:
        """Read every chunk; raises `ObjectStoreDown`."""
        key = Keys(job).manifest(manifest_hash)
        try:
            manifest = self.manifest(job, manifest_hash)
        except (ManifestError, NoSuchObject, ObjectDamaged) as error:
            return Verdict(chunks=0, bytes=0, damages=(ChunkDamage(key, manifest_hash, str(error)),))
        chunks, total, damages = 0, 0, list[ChunkDamage]()
        for chunk, damage in verify_chunks(manifest, self._read):
            chunks, total = chunks + 1, total + chunk.length
            if damage is not None:
                damages.append(damage)
        return Verdict(chunks=chunks, bytes=total, damages=tuple(damages[:_DAMAGES_NAMED]))

    def _read(self, key: str, offset: int, length: int) -> bytes | None:
        try:
            return self._store.get(key, offset=offset, length=length)
        except (NoSuchObject, ObjectDamaged):
            return None

    def keys(self, job: str) -> list[str]:
        """Every object of the job's checkpoints."""
        return list(self._keys(Keys(job).root))

    def _keys(self, prefix: str) -> Iterator[str]:
        after = ""
        while page := self._store.list(prefix, after=after):
            for info in page:
                yield info.key
            after = page[-1].key

    def remove(self, keys: Iterable[str]) -> int:
        """Delete objects; returns how many. Killed in between, the rest is found again by the next sweep."""
        count = 0
        for key in keys:
            hit("checkpoint.sweep")
            self._store.delete(key)
            count += 1
        return count
