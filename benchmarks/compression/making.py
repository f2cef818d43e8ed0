"""Contenders by the names of their exchanges."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from compression.contenders import Adapted, Contender, Ddp, Own, Replayed, Setting
from compression.learning import Lesson
from compression.stepping import Stepped, way_of

from distroml.runtime.compress.control import Change
from distroml.runtime.elastic import World


def contender(
    lesson: Lesson, setting: Setting, seed: int, world: World, size: int, changes: Sequence[Change] | None = None
) -> Contender:
    """What `setting` names, with first weights by `seed`. Collective.

    Args:
        lesson, setting, seed, world: what is learnt, how, and by whom.
        size: this rank's part of a step's batch.
        changes: what "own:auto" is to repeat; None: it decides.
    """
    dist.barrier()
    whose, _, exchange = setting.exchange.partition(":")
    if whose != "own":
        return Ddp(lesson, setting, seed)
    if exchange == "auto":
        if changes is None:
            return Adapted(lesson, setting, seed, world, lesson.batch(seed, 0, size, world))
        return Replayed(lesson, setting, seed, world, changes)
    if (way := way_of(exchange, setting.learning_rate)) is not None:
        return Stepped(lesson, setting, way, seed, world)
    return Own(lesson, setting, seed, world)
