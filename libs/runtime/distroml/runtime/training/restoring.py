"""Load the checkpoint that a generation starts from, and agree over all ranks that it was sound."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distroml.objectstore import ObjectStoreDown, ObjectStoreRefused
from distroml.runtime.checkpoint import ANCHOR, OUTER, RESIDUALS, CorruptChunk, Whole, restore
from distroml.runtime.elastic import Collectives
from distroml.runtime.link import Link
from distroml.runtime.training.storage import Storage
from distroml.workerlink import CheckpointRef, CorruptionFound

log = logging.getLogger("distroml.runtime.checkpoint")

_ASK_S = 60.0
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_PATIENCE_S = 600.0
"""How long the store of objects may be away: as long as a survivor waits for a generation."""


@dataclass(frozen=True, slots=True)
class Found:
    """What restoring came to: the checkpoint that is loaded now, and how many damaged ones were passed over."""

    ref: CheckpointRef | None
    damaged: int
    seconds: float


def restore_agreed(
    *,
    wanted: CheckpointRef | None,
    storage: Storage,
    link: Link,
    collectives: Collectives,
    fresh: Callable[[], tuple[nn.Module, Optimizer, dict[str, Any]]],
    whole: Whole,
    own: tuple[str, str],
    check: Callable[[], None],
) -> tuple[Found, dict[str, Any]]:
    """Load `wanted`, or the newest older checkpoint that is sound on every rank. Collective.

    Args:
        wanted: what the generation names; rank 0's word counts.
        storage: where checkpoints lie.
        link: tells of damage, and is told what else there is.
        collectives: of this generation.
        fresh: the model, an optimizer that has not stepped, and the further state to fill; called for each try.
        whole: the model of which this rank holds a part.
        own: where the further state has what only this rank saved.
        check: raises where the generation is over; asked while the store of objects is away.

    Returns:
        What was found, and the further state; with no checkpoint left the model may be half overwritten where
        `damaged` is above 0.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
        ObjectStoreError: the store stayed away.
    """
    started = time.monotonic()
    world = collectives.world
    ref = collectives.gather(wanted)[0]
    tried: set[str] = set()
    while ref is not None and ref.manifest_hash not in tried:
        tried.add(ref.manifest_hash)
        model, optimizer, more = fresh()
        damage: CorruptChunk | None = None
        try:
            _load(storage, ref, model, optimizer, world.rank, more, whole, own, check)
        except CorruptChunk as error:
            damage = error
            log.error("checkpoint of step %d is damaged: %s; trying an older one", ref.step, error)
        unsound = [rank for rank, bad in enumerate(collectives.gather(damage is not None)) if bad]
        if not unsound:
            return Found(ref, len(tried) - 1, time.monotonic() - started), more
        answer: CheckpointRef | None = None
        if damage is not None and world.rank == unsound[0]:
            answer = _next_best(storage, link, world.generation, damage)
        if storage.catalogue is not None:
            storage.catalogue.damaged(ref.manifest_hash)
        # One rank asks and tells the others: answers to several could differ.
        ref = collectives.gather(answer)[unsound[0]]
    return Found(None, len(tried), time.monotonic() - started), fresh()[2]


def _load(
    storage: Storage,
    ref: CheckpointRef,
    model: nn.Module,
    optimizer: Optimizer,
    rank: int,
    more: dict[str, Any],
    whole: Whole,
    own: tuple[str, str],
    check: Callable[[], None],
) -> None:
    patient_until = time.monotonic() + _PATIENCE_S
    for nth in count():
        try:
            restore(
                storage.store,
                storage.job,
                ref.manifest_hash,
                model,
                optimizer,
                rank=rank,
                more=more,
                whole=whole,
                optional=(RESIDUALS, OUTER, ANCHOR),
                own=own,
            )
            return
        except ObjectStoreDown as error:
            # One that refuses us does so again, but for a moment after it was started.
            is_over = isinstance(error, ObjectStoreRefused) or time.monotonic() >= patient_until
            if nth >= len(_PAUSES_S) and is_over:
                raise
            pause_s = _PAUSES_S[min(nth, len(_PAUSES_S) - 1)]
            log.warning("the object store is away (%s), trying again in %.1f s", error, pause_s)
            time.sleep(pause_s)
            check()


def _next_best(storage: Storage, link: Link, generation: int, damage: CorruptChunk) -> CheckpointRef | None:
    if storage.catalogue is not None:
        storage.catalogue.damaged(damage.manifest_hash)
        return storage.catalogue.latest()
    answer = link.ask(
        CorruptionFound(
            generation=generation,
            manifest_hash=damage.manifest_hash,
            object_key=damage.object_key,
            chunk_hash=damage.chunk_hash,
            message=damage.message[:2000],
        ),
        _ASK_S,
    )
    if answer is None:
        raise TimeoutError(
            f"a checkpoint is damaged and the agent did not name another within {_ASK_S:.0f} s: {damage.message}"
        )
    return answer.restore
