"""What follows from a command. A checkpoint exists only after every rank reported and all of it was checked."""

from __future__ import annotations

from typing import assert_never

from distroml.checkpoint.domain import reasons
from distroml.checkpoint.domain.commands import (
    BeginSave,
    Collect,
    Command,
    CommitSave,
    Delete,
    FailSave,
    Pin,
    RecordVerified,
    ReportCorruption,
    ReportShard,
)
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
from distroml.checkpoint.domain.evolve import evolve
from distroml.checkpoint.domain.retention import not_kept
from distroml.checkpoint.domain.state import MAX_PINS, Catalogue, Checkpoint, OpenSave, Phase, save_id
from distroml.events import Decider, Rejection

ABANDONED_AFTER_MS = 2 * 60 * 1000
"""An open save of the same generation this old makes way for a newer step: ranks that ask for one write no more."""


def decide(catalogue: Catalogue, command: Command) -> tuple[Event, ...]:
    """The events that follow; raises `Rejection`."""
    match command:
        case BeginSave():
            return _begin(catalogue, command)
        case ReportShard():
            return _report(catalogue, command)
        case CommitSave():
            return _commit(catalogue, command)
        case FailSave():
            return _fail(catalogue, command)
        case ReportCorruption():
            return _corrupt(catalogue, command)
        case RecordVerified():
            return _verified(catalogue, command)
        case Pin():
            return _pin(catalogue, command)
        case Delete():
            return _delete(catalogue, command)
        case Collect(at_ms=at_ms):
            return tuple(_deleted(c, at_ms, "retention") for c in not_kept(catalogue, at_ms)[:MAX_PINS])
        case _:
            assert_never(command)


CATALOGUE: Decider[Catalogue, Command, Event] = Decider(Catalogue(), decide, evolve)
"""The decider of streams `checkpoint/job/<job>`."""


def _begin(catalogue: Catalogue, command: BeginSave) -> tuple[Event, ...]:
    save = catalogue.open
    if save is not None and (save.generation, save.step) == (command.generation, command.step):
        _same_world(save, command.world_size)
        return ()
    _not_over(catalogue, command.generation, command.step)
    closing: tuple[Event, ...] = ()
    if save is not None and save.generation == command.generation:
        if command.at_ms - save.begun_ms < ABANDONED_AFTER_MS:
            # Recorded, not merely refused: every rank that asks for this step must get the same answer.
            message = f"step {save.step} is still being saved: {save.missing} of {save.world_size} ranks are missing"
            return (_refused(command, reasons.SAVE_IN_PROGRESS, message),)
        closing = (_closed(save, command.at_ms, reasons.ABANDONED, "it never completed, and a newer step is saved"),)
    elif save is not None:
        closing = (_closed(save, command.at_ms, reasons.SUPERSEDED, f"generation {command.generation} took over"),)
    base = catalogue.newest_sound()
    begun = Begun(
        at_ms=command.at_ms,
        job=command.job,
        save_id=save_id(catalogue.opened + 1),
        step=command.step,
        generation=command.generation,
        world_size=command.world_size,
        base_manifest_hash=base.manifest_hash if base else "",
        keep=command.keep or catalogue.keep,
        project=command.project,
    )
    return (*closing, begun)


def _report(catalogue: Catalogue, command: ReportShard) -> tuple[Event, ...]:
    save = catalogue.open
    if save is None or (save.generation, save.step) != (command.generation, command.step):
        if catalogue.committed(command.generation, command.step):
            return ()
        _not_over(catalogue, command.generation, command.step)
        raise Rejection(
            reasons.NO_OPEN_SAVE,
            f"no save of step {command.step} is open in generation {command.generation}; begin one first",
        )
    _same_world(save, command.world_size)
    known = save.shard(command.rank)
    if known is not None:
        if known.sha256 == command.shard_hash:
            return ()
        raise Rejection(
            reasons.SHARD_CONFLICT,
            f"rank {command.rank} reported another shard of step {save.step} before ({known.sha256})",
        )
    if command.rank >= save.world_size:
        raise Rejection(reasons.SHARD_CONFLICT, f"rank {command.rank} is not in a world of {save.world_size}")
    return (
        ShardReported(
            at_ms=command.at_ms,
            save_id=save.save_id,
            rank=command.rank,
            shard_key=command.shard_key,
            shard_hash=command.shard_hash,
            bytes_written=command.bytes_written,
            bytes_reused=command.bytes_reused,
            seconds=command.seconds,
        ),
    )


def _commit(catalogue: Catalogue, command: CommitSave) -> tuple[Event, ...]:
    save = catalogue.open
    if save is None or save.save_id != command.save_id:
        return ()
    if save.missing:
        raise Rejection(
            reasons.SHARDS_MISSING, f"{save.missing} of {save.world_size} ranks have not reported step {save.step}"
        )
    base = catalogue.of_hash(save.base_manifest_hash)
    if command.bytes_reused and (base is None or base.phase is not Phase.COMMITTED):
        return (_closed(save, command.at_ms, reasons.BASE_DAMAGED, "it takes over chunks of a damaged checkpoint"),)
    return (
        Committed(
            at_ms=command.at_ms,
            save_id=save.save_id,
            step=save.step,
            generation=save.generation,
            manifest_hash=command.manifest_hash,
            shards=save.world_size,
            bytes_total=command.bytes_total,
            bytes_written=command.bytes_written,
            bytes_reused=command.bytes_reused,
            save_s=max(0, command.at_ms - save.begun_ms) / 1000,
        ),
    )


def _fail(catalogue: Catalogue, command: FailSave) -> tuple[Event, ...]:
    save = catalogue.open
    if save is not None and (save.generation, save.step) == (command.generation, command.step):
        return (_closed(save, command.at_ms, command.reason, command.message, command.rank),)
    if (command.generation, command.step) <= (catalogue.generation, catalogue.step):
        return ()
    return (_refused(command, command.reason, command.message, command.rank),)


def _corrupt(catalogue: Catalogue, command: ReportCorruption) -> tuple[Event, ...]:
    reported = catalogue.of_hash(command.reported)
    if reported is None:
        raise _unknown(f"manifest {command.reported}")
    hashes = {command.reported, *command.sharing}
    damaged = [c for c in catalogue.checkpoints if c.manifest_hash in hashes and c.phase is Phase.COMMITTED]
    found = tuple(
        CorruptChunkFound(
            at_ms=command.at_ms,
            step=c.step,
            manifest_hash=c.manifest_hash,
            object_key=command.object_key,
            chunk_hash=command.chunk_hash,
            message=command.message,
        )
        for c in damaged
    )
    before, after = catalogue.newest_sound(), CATALOGUE.fold(found, since=catalogue).newest_sound()
    if before is None or before == after:
        return found
    fell = FellBack(
        at_ms=command.at_ms,
        from_step=before.step,
        to_step=after.step if after else 0,
        manifest_hash=after.manifest_hash if after else "",
    )
    return (*found, fell)


def _verified(catalogue: Catalogue, command: RecordVerified) -> tuple[Event, ...]:
    checkpoint = catalogue.of_hash(command.manifest_hash)
    if checkpoint is None or checkpoint.phase is not Phase.COMMITTED:
        return ()
    return (
        Verified(
            at_ms=command.at_ms,
            step=checkpoint.step,
            manifest_hash=checkpoint.manifest_hash,
            chunks=command.chunks,
            bytes=command.bytes,
        ),
    )


def _pin(catalogue: Catalogue, command: Pin) -> tuple[Event, ...]:
    checkpoint = catalogue.of_step(command.step)
    if checkpoint is None:
        raise _unknown(f"checkpoint of step {command.step}")
    if command.ttl_s and sum(c.pinned(command.at_ms) for c in catalogue.present) >= MAX_PINS:
        raise Rejection(reasons.TOO_MANY_PINS, f"{MAX_PINS} checkpoints are pinned already; remove a pin first")
    until_ms = command.at_ms + command.ttl_s * 1000 if command.ttl_s else 0
    if not until_ms and all(pin.owner != command.owner for pin in checkpoint.pins):
        return ()
    return (
        PinSet(at_ms=command.at_ms, manifest_hash=checkpoint.manifest_hash, owner=command.owner, until_ms=until_ms),
    )


def _delete(catalogue: Catalogue, command: Delete) -> tuple[Event, ...]:
    checkpoint = catalogue.of_step(command.step)
    if checkpoint is None:
        if any(c.step == command.step for c in catalogue.checkpoints):
            return ()
        raise _unknown(f"checkpoint of step {command.step}")
    if checkpoint.pinned(command.at_ms):
        owners = ", ".join(pin.owner for pin in checkpoint.pins)
        raise Rejection(reasons.PINNED, f"step {command.step} is pinned by {owners}; remove the pin first")
    if catalogue.open is not None and catalogue.open.base_manifest_hash == checkpoint.manifest_hash:
        raise Rejection(reasons.BASE_OF_OPEN_SAVE, f"the save of step {catalogue.open.step} builds on it; wait for it")
    if checkpoint == catalogue.newest_sound():
        raise Rejection(reasons.NEWEST_SOUND, f"step {command.step} is the newest sound checkpoint: it is always kept")
    return (_deleted(checkpoint, command.at_ms, "asked for"),)


def _same_world(save: OpenSave, world_size: int) -> None:
    if save.world_size != world_size:
        raise Rejection(
            reasons.WORLD_SIZE_CONFLICT,
            f"step {save.step} of generation {save.generation} is saved by {save.world_size} ranks, not {world_size}",
        )


def _not_over(catalogue: Catalogue, generation: int, step: int) -> None:
    """Refuse what lies behind: an older generation, or a step of this one that is settled."""
    if generation < catalogue.generation:
        raise Rejection(
            reasons.STALE_GENERATION,
            f"generation {catalogue.generation} has saved since; generation {generation} must stop",
        )
    if generation > catalogue.generation or step > catalogue.step:
        return
    if catalogue.committed(generation, step):
        raise Rejection(reasons.ALREADY_COMMITTED, f"step {step} of generation {generation} is a checkpoint already")
    failure = catalogue.failure(generation, step)
    if failure is not None:
        raise Rejection(failure.reason, f"the save of step {step} failed: {failure.message}")
    raise Rejection(reasons.SAVE_CLOSED, f"generation {generation} has begun to save step {catalogue.step} since")


def _closed(save: OpenSave, at_ms: int, reason: str, message: str, rank: int = -1) -> SaveFailed:
    return SaveFailed(
        at_ms=at_ms,
        save_id=save.save_id,
        step=save.step,
        generation=save.generation,
        rank=rank,
        message=message,
        reason=reason,
    )


def _refused(command: BeginSave | FailSave, reason: str, message: str, rank: int = -1) -> SaveFailed:
    return SaveFailed(
        at_ms=command.at_ms,
        save_id="",
        step=command.step,
        generation=command.generation,
        rank=rank,
        message=message,
        reason=reason,
    )


def _deleted(checkpoint: Checkpoint, at_ms: int, why: str) -> Deleted:
    return Deleted(at_ms=at_ms, step=checkpoint.step, manifest_hash=checkpoint.manifest_hash, why=why)


def _unknown(what: str) -> Rejection:
    lists = "`distroml checkpoints list JOB` shows what there is"
    return Rejection(reasons.UNKNOWN_CHECKPOINT, f"the job has no {what}; {lists}")
