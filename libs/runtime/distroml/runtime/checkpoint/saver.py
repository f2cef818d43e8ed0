"""Saving beside the training step: the step waits for a copy in memory, a thread does the rest."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch.distributed.checkpoint.planner import SavePlan

from distroml.manifest import CHUNK_BYTES, MAX_EXTRA_BYTES, PACK_BYTES, KnownChunk, ManifestError
from distroml.objectstore import (
    NoSuchObject,
    ObjectDamaged,
    ObjectStore,
    ObjectStoreDown,
    ObjectStoreError,
    ObjectStoreFull,
    ObjectStoreRefused,
)
from distroml.runtime.checkpoint.agreement import Agreed
from distroml.runtime.checkpoint.errors import UnsupportedState
from distroml.runtime.checkpoint.packing import SaveCancelled
from distroml.runtime.checkpoint.plain import encode_plain
from distroml.runtime.checkpoint.planner import State
from distroml.runtime.checkpoint.staging import StagedPlanner
from distroml.runtime.checkpoint.writer import ManifestWriter, SaveTarget, known_chunks
from distroml.runtime.elastic import check_sums

log = logging.getLogger("distroml.runtime.checkpoint")

OPEN_TIMEOUT_S = 600.0
"""How long a staged save waits for the catalogue's answer before it is given up."""

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_REFUSED_TRIES = 5
"""A store that refuses us does so again, but for a moment after it was started."""


class Opened(Protocol):
    """The catalogue's answer to a save; `distroml.workerlink.SaveOpened` is one."""

    @property
    def step(self) -> int:
        """The step that was asked for."""
        ...

    @property
    def save_id(self) -> str:
        """Id of the save."""
        ...

    @property
    def base_manifest_hash(self) -> str:
        """The pinned manifest whose chunks may be taken over; empty for none."""
        ...

    @property
    def object_prefix(self) -> str:
        """Where to put packs; empty for the usual place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """This rank's part is durable; the fields of `distroml.workerlink.ShardSaved`."""

    generation: int
    step: int
    rank: int
    world_size: int
    shard_key: str
    shard_hash: str
    bytes_written: int
    bytes_reused: int
    seconds: float


@dataclass(slots=True)
class _Save:
    """A staged save on its way."""

    step: int
    plan: SavePlan
    extra: bytes
    begun: float
    patience_s: float
    opened: Opened | None = None
    dropped: bool = False


def _in_words(error: ObjectStoreError) -> str:
    if isinstance(error, ObjectStoreFull):
        return f"the object store is full: {error}; free space"
    return f"the object store failed: {error}"


def _encode_extra(extra: object) -> bytes:
    small = encode_plain(extra, "extra")
    if len(small) > MAX_EXTRA_BYTES:
        raise UnsupportedState("extra", f"it has {len(small)} bytes, at most {MAX_EXTRA_BYTES}; put it into the state")
    return small


class Saver:
    """Saves one rank's part of the state, at most one save at a time, with no collective.

    A save that cannot be written is reported by `on_failed` and never raises into the training loop. Callbacks
    come on the saver's thread; one that raises ends the process's saving, so they only send.

    Args:
        store: where checkpoints lie.
        job: whose they are.
        rank: this process's rank in the generation.
        world_size: the generation's world size.
        generation: its number.
        on_saved: the part is durable: report it to the catalogue.
        on_failed: (step, text): it will never be.
        chunk_bytes: size of a chunk.
        pack_bytes: most bytes of an object.
        open_timeout_s: how long to wait for `opened`.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        job: str,
        rank: int,
        world_size: int,
        generation: int,
        on_saved: Callable[[ShardResult], None],
        on_failed: Callable[[int, str], None],
        chunk_bytes: int = CHUNK_BYTES,
        pack_bytes: int = PACK_BYTES,
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}")
        self._store, self._job, self._generation = store, job, generation
        self._rank, self._world_size = rank, world_size
        self._on_saved, self._on_failed = on_saved, on_failed
        self._chunk_bytes, self._pack_bytes, self._open_timeout_s = chunk_bytes, pack_bytes, open_timeout_s
        self._planner = StagedPlanner()
        self._base: tuple[str, Mapping[str, KnownChunk]] = ("", {})
        self._changed = threading.Condition()
        self._save: _Save | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self.skipped = 0
        self.blocked_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether a save is staged or being written."""
        return self._save is not None

    def begin(
        self,
        state: State | Agreed,
        extra: object,
        *,
        step: int,
        opened: Opened | None = None,
        patience_s: float = 0.0,
    ) -> bool:
        """Copy this rank's part of `state` and save it in the background.

        Args:
            state: what `capture` gave, or any nested dict of tensors and plain values, where ranks hold copies or
                say by a DTensor what others hold. Else what an `Agreement` made of it.
            extra: this rank's small state.
            step: the optimizer step that the state is after.
            opened: the catalogue's answer where it is known already; else it comes by `opened`.
            patience_s: how long a store that is away or full is tried again. Of no use where another save follows.

        Returns:
            False where a save is still running, or there was no memory for the copy (reported by `on_failed`).

        Raises:
            UnsupportedState: the state holds what no checkpoint can hold: this would fail at every save.
        """
        if self._closed:
            raise ValueError("the saver is closed; make one for the new generation")
        started = time.perf_counter()
        if self.busy:
            self.skipped += 1
            return False
        try:
            small = _encode_extra(extra)
            plan = self._planner.stage(state, self._rank, self._world_size)
        except (MemoryError, RuntimeError) as error:
            # torch reports a failed allocation as RuntimeError.
            self._on_failed(step, f"the state could not be copied: {error}")
            return False
        with self._changed:
            self._save = _Save(step, plan, small, started, patience_s, opened)
            self._changed.notify_all()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="checkpoint-saver", daemon=True)
            self._thread.start()
        self.blocked_s = time.perf_counter() - started
        return True

    def opened(self, opened: Opened) -> None:
        """The catalogue opened the save; late answers for another step are ignored."""
        with self._changed:
            if self._save is not None and self._save.step == opened.step and self._save.opened is None:
                self._save.opened = opened
                self._changed.notify_all()

    def drop(self, step: int) -> bool:
        """End the save of `step`, without a call of `on_failed`; False where it is not on its way (any more)."""
        with self._changed:
            if self._save is None or self._save.step != step:
                return False
            self._save.dropped = True
            self._changed.notify_all()
            return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until no save is running; True where that came within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._save is None, timeout_s)

    def close(self, timeout_s: float = 0.0) -> None:
        """Drop what is in flight and end the thread; waits at most `timeout_s` for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (save := self._next()) is not None:
            result, failure = self._outcome(save)
            # Idle first: whoever hears of the outcome may begin the next save at once.
            with self._changed:
                self._save = None
                self._changed.notify_all()
            if result is not None:
                self._on_saved(result)
            elif failure:
                self._on_failed(save.step, failure)

    def _next(self) -> _Save | None:
        """The next staged save, once the catalogue answered or its time is up; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._save is not None)
            save = self._save
            if self._closed or save is None:
                return None
            self._changed.wait_for(
                lambda: self._closed or save.dropped or save.opened is not None, self._open_timeout_s
            )
            return save

    def _outcome(self, save: _Save) -> tuple[ShardResult | None, str]:
        """The result, or why there is none; empty where nobody wants to know any more."""
        opened, tries = save.opened, 0
        while not (self._closed or save.dropped):
            if opened is None:
                return None, f"the catalogue did not answer within {self._open_timeout_s:.0f} s"
            try:
                return self._write(save, opened), ""
            except SaveCancelled:
                break
            except ObjectStoreError as error:
                failure, tries = _in_words(error), tries + 1
                if not self._waits(save, error, tries, failure):
                    return None, failure
            except Exception as error:
                # A failed save never stops training, whatever failed.
                return None, f"{type(error).__name__}: {error}"
        return None, ""

    def _waits(self, save: _Save, error: ObjectStoreError, tries: int, failure: str) -> bool:
        """Wait until it is time for another try; False where that will not help, or the patience is at its end."""
        left_s = save.begun + save.patience_s - time.perf_counter()
        pause_s = _PAUSES_S[min(tries, len(_PAUSES_S)) - 1]
        in_vain = isinstance(error, ObjectStoreRefused) and tries > _REFUSED_TRIES
        if left_s <= pause_s or in_vain or not isinstance(error, ObjectStoreDown | ObjectStoreFull):
            return False
        log.warning(
            "the save of step %d waits: %s; trying again in %.1f s, and for %.0f s in all",
            *(save.step, failure, pause_s, left_s),
        )
        with self._changed:
            self._changed.wait_for(lambda: self._closed or save.dropped, pause_s)
        return True

    def _write(self, save: _Save, opened: Opened) -> ShardResult:
        self._planner.finish_copy()
        check_sums()
        target = SaveTarget(
            job=self._job,
            save_id=opened.save_id,
            step=save.step,
            generation=self._generation,
            rank=self._rank,
            world_size=self._world_size,
            base_manifest_hash=opened.base_manifest_hash,
            object_prefix=opened.object_prefix,
        )
        writer = ManifestWriter(
            self._store,
            target,
            extra=save.extra,
            known=self._known(opened.base_manifest_hash),
            chunk_bytes=self._chunk_bytes,
            pack_bytes=self._pack_bytes,
            cancelled=lambda: self._closed or save.dropped,
        )
        writer.write_data(save.plan, self._planner).wait()
        written = writer.written
        assert written is not None
        return ShardResult(
            generation=self._generation,
            step=save.step,
            rank=self._rank,
            world_size=self._world_size,
            shard_key=written.key,
            shard_hash=written.sha256,
            bytes_written=written.bytes_written,
            bytes_reused=written.bytes_reused,
            seconds=time.perf_counter() - save.begun,
        )

    def _known(self, manifest_hash: str) -> Mapping[str, KnownChunk]:
        """The base's chunks; none where its manifest cannot be read: then everything is written anew."""
        if manifest_hash and self._base[0] != manifest_hash:
            try:
                self._base = (manifest_hash, known_chunks(self._store, self._job, manifest_hash))
            except (ManifestError, NoSuchObject, ObjectDamaged):
                return {}
        return self._base[1] if manifest_hash else {}
