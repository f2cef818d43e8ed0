"""The state after an event; total over every event ever stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, assert_never

from distroml.checkpoint.domain.events import (
    Begun,
    Committed,
    CorruptChunkFound,
    Deleted,
    Event,
    FellBack,
    PinSet,
    SaveFailed,
    ShardReported,
    Verified,
)
from distroml.checkpoint.domain.state import (
    REMEMBERED,
    Catalogue,
    Checkpoint,
    FailedSave,
    OpenSave,
    Phase,
    PinHeld,
    Shard,
)

Change: TypeAlias = Callable[[Checkpoint], Checkpoint]


def evolve(catalogue: Catalogue, event: Event) -> Catalogue:
    """The catalogue after one event."""
    match event:
        case Begun():
            return _begun(catalogue, event)
        case ShardReported():
            return _reported(catalogue, event)
        case Committed():
            return _committed(catalogue, event)
        case SaveFailed():
            return _failed(catalogue, event)
        case Verified(manifest_hash=hash_, at_ms=at_ms):
            return _changed(catalogue, hash_, lambda c: replace(c, verified_at_ms=at_ms))
        case CorruptChunkFound(manifest_hash=hash_, message=message):
            return _changed(catalogue, hash_, lambda c: replace(c, phase=Phase.DAMAGED, message=message))
        case FellBack():
            return catalogue
        case Deleted(manifest_hash=hash_, why=why):
            deleted = _changed(catalogue, hash_, lambda c: replace(c, phase=Phase.DELETED, message=why, pins=()))
            return _forget(deleted)
        case PinSet():
            return _changed(catalogue, event.manifest_hash, lambda c: _pinned(c, event))
        case _:
            assert_never(event)


def _begun(catalogue: Catalogue, event: Begun) -> Catalogue:
    save = OpenSave(
        save_id=event.save_id,
        step=event.step,
        generation=event.generation,
        world_size=event.world_size,
        base_manifest_hash=event.base_manifest_hash,
        begun_ms=event.at_ms,
    )
    return replace(
        catalogue,
        job=event.job,
        project=event.project,
        keep=event.keep,
        opened=catalogue.opened + 1,
        generation=event.generation,
        step=event.step,
        open=save,
    )


def _reported(catalogue: Catalogue, event: ShardReported) -> Catalogue:
    save = catalogue.open
    if save is None or save.save_id != event.save_id:
        return catalogue
    shard = Shard(
        rank=event.rank,
        key=event.shard_key,
        sha256=event.shard_hash,
        bytes_written=event.bytes_written,
        bytes_reused=event.bytes_reused,
        seconds=event.seconds,
    )
    shards = tuple(sorted((*save.shards, shard), key=lambda shard: shard.rank))
    return replace(catalogue, open=replace(save, shards=shards))


def _committed(catalogue: Catalogue, event: Committed) -> Catalogue:
    base = catalogue.open.base_manifest_hash if catalogue.open else ""
    checkpoint = Checkpoint(
        save_id=event.save_id,
        step=event.step,
        generation=event.generation,
        manifest_hash=event.manifest_hash,
        base_manifest_hash=base,
        shards=event.shards,
        bytes_total=event.bytes_total,
        bytes_written=event.bytes_written,
        bytes_reused=event.bytes_reused,
        at_ms=event.at_ms,
        save_s=event.save_s,
    )
    return replace(catalogue, open=None, checkpoints=(*catalogue.checkpoints, checkpoint))


def _failed(catalogue: Catalogue, event: SaveFailed) -> Catalogue:
    failed = FailedSave(generation=event.generation, step=event.step, reason=event.reason, message=event.message)
    closes = catalogue.open is not None and catalogue.open.save_id == event.save_id
    generation, step = max((catalogue.generation, catalogue.step), (event.generation, event.step))
    return replace(
        catalogue,
        open=None if closes else catalogue.open,
        generation=generation,
        step=step,
        failed=(*catalogue.failed, failed)[-REMEMBERED:],
    )


def _changed(catalogue: Catalogue, manifest_hash: str, change: Change) -> Catalogue:
    checkpoints = tuple(change(c) if c.manifest_hash == manifest_hash else c for c in catalogue.checkpoints)
    return replace(catalogue, checkpoints=checkpoints)


def _pinned(checkpoint: Checkpoint, event: PinSet) -> Checkpoint:
    others = tuple(pin for pin in checkpoint.pins if pin.owner != event.owner and pin.until_ms > event.at_ms)
    return replace(checkpoint, pins=(*others, PinHeld(event.owner, event.until_ms)) if event.until_ms else others)


def _forget(catalogue: Catalogue) -> Catalogue:
    deleted = [c.manifest_hash for c in catalogue.checkpoints if c.phase is Phase.DELETED]
    forgotten = set(deleted[:-REMEMBERED])
    return replace(catalogue, checkpoints=tuple(c for c in catalogue.checkpoints if c.manifest_hash not in forgotten))
