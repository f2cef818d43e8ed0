"""What each rank of the pool does in tests of residuals in checkpoints: restore, save, train some steps, save again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from distroml.objectstore.filesystem import open_object_store
from distroml.runtime.checkpoint import RESIDUALS, Agreement, Whole, capture, restore
from distroml.runtime.elastic import World
from distroml.runtime.parallel.gradients import local_of
from libs.runtime.tests.checkpoint.common import JOB
from libs.runtime.tests.checkpoint.crossing import gather, save_agreed
from libs.runtime.tests.parallel.exchanging import MICROBATCH, Told, step
from libs.runtime.tests.parallel.models import Quirks
from libs.runtime.tests.parallel.ranks import spread


def leg(
    world: World, folder: str, plan: str, sha: str, first: int, last: int, compress: str, residuals: str = "folded"
) -> dict[str, Any]:
    """Restore `sha` where there is one, save, make steps `first` to `last`, save.

    Returns:
        "sha" of the save after the steps, "handed" of the one before them; "bits" and "losses"; "gap": the worst of
        what steps told and kept to what they were to tell, relative to that.
    """
    store = open_object_store(Path(folder) / "objects")
    quirks = Quirks(tied=True, width=8)
    parallel = spread(world, plan, quirks, MICROBATCH, torch.float32, compress=compress, residuals=residuals)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    whole = parallel.part.whole if parallel.part.whole.place else Whole.of(parallel.module)

    def save(number: int) -> str:
        state = capture(parallel.part.state, optimizer, whole=whole, **parallel.keeping.kept())
        agreed = Agreement(world.rank, gather, whole).agree(state)
        return save_agreed(store, agreed, world.rank, world.world_size, step=number)

    handed = ""
    if sha:
        more = parallel.keeping.blank()
        restore(
            store, JOB, sha, parallel.part.state, optimizer,
            rank=world.rank, more=more, whole=whole, optional=(RESIDUALS,), own=parallel.keeping.own_place,
        )  # fmt: skip
        parallel.keeping.keep(more)
        handed = save(10 * first)
    told = Told(parallel) if parallel.exchange is not None else None
    losses: list[float] = []
    worst = 0.0
    for number in range(first, last + 1):
        losses.append(float(step(parallel, number)[0]))
        if told is not None:
            worst = max(worst, told.gap(number))
        optimizer.step()
    digest = hashlib.sha256()
    for name, value in parallel.full_tensors():
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    saved = save(10 * last + 1)
    parallel.close()
    return {"sha": saved, "handed": handed, "bits": digest.hexdigest(), "losses": losses, "gap": worst}


def owed(world: World, folder: str, plan: str, sha: str) -> dict[str, Any]:
    """One plain step after a compressed run, with what that kept and without: how far the parameters differ by it.

    Returns:
        "residuals", the norm of what was kept; "differs", how far that is from the learning rate times it; how many
        residuals a save has "before" and "after" the step.
    """
    store = open_object_store(Path(folder) / "objects")
    ends: list[dict[str, torch.Tensor]] = []
    kept: dict[str, torch.Tensor] = {}
    counts: list[int] = []
    for heeds in (False, True):
        parallel = spread(world, plan, Quirks(tied=True, width=8), MICROBATCH, torch.float32)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
        more = parallel.keeping.blank()
        whole = parallel.part.whole if parallel.part.whole.place else Whole.of(parallel.module)
        restore(
            store, JOB, sha, parallel.part.state, optimizer,
            rank=world.rank, more=more, whole=whole, optional=(RESIDUALS,), own=parallel.keeping.own_place,
        )  # fmt: skip
        if heeds:
            parallel.keeping.keep(more)
            kept = {name: local_of(one).clone() for name, one in more[RESIDUALS].items()}
            counts.append(len(parallel.keeping.kept()[RESIDUALS]))
        step(parallel, 3)
        optimizer.step()
        if heeds:
            counts.append(len(parallel.keeping.kept()))
        ends.append({name: one.clone() for name, one in parallel.local_tensors()})
        parallel.close()
    without, fed = ends
    off = [float((without[name] - fed[name] - 0.1 * one).norm()) for name, one in kept.items()]
    return {
        "residuals": sum(float(one.norm()) for one in kept.values()),
        "differs": sum(off),
        "before": counts[0],
        "after": counts[1],
    }
