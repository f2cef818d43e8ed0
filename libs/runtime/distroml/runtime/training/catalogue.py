"""The checkpoint catalogue of a run that stands alone: rank 0 commits into a folder that all ranks see."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from distroml.manifest import Keys, ManifestError, encode, hash_of, merge, reachable, read_manifest, read_shard
from distroml.objectstore import NoSuchObject, ObjectDamaged, ObjectStore
from distroml.workerlink import CheckpointRef, SaveOpened

log = logging.getLogger("distroml.runtime.checkpoint")

KEPT = 3
_COMMIT_S = 120.0
_POLL_S = 0.02


class LocalCatalogue:
    """Commits a save once every rank's shard manifest lies in the store; keeps the newest `KEPT` checkpoints.

    A committed checkpoint is an object `checkpoints/<job>/committed/<step>` that holds the manifest's hash; it is
    written last, so an interrupted save leaves nothing that a later start would take for a checkpoint.
    """

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._keys = Keys(job)
        self._prefix = f"{self._keys.root}committed/"
        self._damaged: set[str] = set()

    def committed(self) -> list[CheckpointRef]:
        """All checkpoints that are not known to be damaged, newest first."""
        refs: list[CheckpointRef] = []
        after = ""
        while page := self._store.list(self._prefix, after=after):
            after = page[-1].key
            for info in page:
                manifest_hash = self._store.get(info.key).decode("ascii")
                refs.append(CheckpointRef(step=int(info.key[len(self._prefix) :]), manifest_hash=manifest_hash))
        return [ref for ref in reversed(refs) if ref.manifest_hash not in self._damaged]

    def latest(self) -> CheckpointRef | None:
        """The newest checkpoint."""
        return next(iter(self.committed()), None)

    def damaged(self, manifest_hash: str) -> None:
        """Do not offer this checkpoint again."""
        self._damaged.add(manifest_hash)

    def open(self, step: int, save_id: str, base: str) -> SaveOpened:
        """What the catalogue service would answer to `SaveBegun`."""
        return SaveOpened(
            step=step, save_id=save_id, base_manifest_hash=base, object_prefix=self._keys.data_of(save_id)
        )

    def commit_when_whole(
        self, save_id: str, step: int, world_size: int, done: Callable[[CheckpointRef | None, str], None]
    ) -> None:
        """In a thread: wait for every rank's shard, commit, and call `done(checkpoint, "")` or `done(None, why)`."""

        def run() -> None:
            try:
                done(self._commit(save_id, step, world_size), "")
            except Exception as error:
                done(None, f"{type(error).__name__}: {error}")

        threading.Thread(target=run, name="distroml-commit", daemon=True).start()

    def _commit(self, save_id: str, step: int, world_size: int) -> CheckpointRef:
        prefix = f"{self._keys.root}shards/{save_id}/"
        deadline = time.monotonic() + _COMMIT_S
        while len(found := self._store.list(prefix, limit=max(1000, world_size))) < world_size:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"only {len(found)} of {world_size} shards were there after {_COMMIT_S:.0f} s")
            time.sleep(_POLL_S)
        shards = [read_shard(self._store.get(info.key), info.key.rpartition("-")[2]) for info in found]
        body = encode(merge(shards))
        ref = CheckpointRef(step=step, manifest_hash=hash_of(body))
        self._store.put(self._keys.manifest(ref.manifest_hash), body)
        self._store.delete(f"{self._prefix}{step:012d}")
        self._store.put(f"{self._prefix}{step:012d}", ref.manifest_hash.encode())
        try:
            self._collect()
        except Exception as error:
            log.warning("could not remove old checkpoints: %s", error)
        return ref

    def _collect(self) -> None:
        """Delete checkpoints beyond the newest `KEPT`, and the data that no kept one reaches."""
        refs = self.committed()
        kept, old = refs[:KEPT], refs[KEPT:]
        if not old:
            return
        held: set[str] = set()
        saves: set[str] = set()
        for ref in kept:
            manifest = read_manifest(self._store.get(self._keys.manifest(ref.manifest_hash)), ref.manifest_hash)
            held |= reachable(manifest)
            saves.add(manifest.save_id)
        for ref in old:
            self._delete(ref, held, saves)

    def _delete(self, ref: CheckpointRef, held: set[str], saves: set[str]) -> None:
        """Delete a checkpoint, and its data but for the objects and the saves that kept ones hold."""
        own = self._keys.manifest(ref.manifest_hash)
        try:
            manifest = read_manifest(self._store.get(own), ref.manifest_hash)
        except (ManifestError, NoSuchObject, ObjectDamaged):
            # What it reached is not known any more; those behind it must go all the same.
            manifest = None
        self._store.delete(f"{self._prefix}{ref.step:012d}")
        self._store.delete(own)
        if manifest is None:
            return
        for key in reachable(manifest) - held:
            self._store.delete(key)
        if manifest.save_id not in saves:
            for info in self._store.list(f"{self._keys.root}shards/{manifest.save_id}/"):
                self._store.delete(info.key)
