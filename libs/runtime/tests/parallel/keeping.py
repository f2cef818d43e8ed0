"""What each rank of the pool does in tests of residuals in checkpoints: restore, train some steps, save."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from distroml.objectstore.filesystem import open_object_store
from distroml.runtime.checkpoint import RESIDUALS, Agreement, Whole, capture, restore
from distroml.runtime.elastic import World
from libs.runtime.tests.checkpoint.common import JOB
from libs.runtime.tests.checkpoint.crossing import gather, save_agreed
from libs.runtime.tests.parallel.exchanging import MICROBATCH, step
from libs.runtime.tests.parallel.models import Quirks
from libs.runtime.tests.parallel.ranks import spread


def leg(
    world: World, folder: str, plan: str, sha: str, first: int, last: int, compress: str, residuals: str = "folded"
) -> dict[str, Any]:
    """Restore `sha` where there is one, make steps `first` to `last`, save. Returns the new hash, and bits."""
    store = open_object_store(Path(folder) / "objects")
    quirks = Quirks(tied=True, width=8)
    parallel = spread(world, plan, quirks, MICROBATCH, torch.float32, compress=compress, residuals=residuals)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    whole = parallel.part.whole if parallel.part.whole.place else Whole.of(parallel.module)
    if sha:
        more = parallel.blank_kept()
        restore(
            store, JOB, sha, parallel.part.state, optimizer,
            rank=world.rank, more=more, whole=whole, optional=(RESIDUALS,), own=parallel.own_place,
        )  # fmt: skip
        parallel.keep(more)
    for number in range(first, last + 1):
        step(parallel, number)
        optimizer.step()
    digest = hashlib.sha256()
    for name, value in parallel.full_tensors():
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    state = capture(parallel.part.state, optimizer, whole=whole, **parallel.kept())
    agreed = Agreement(world.rank, gather, whole).agree(state)
    saved = save_agreed(store, agreed, world.rank, world.world_size, step=last + 10)
    parallel.close()
    return {"sha": saved, "bits": digest.hexdigest()}
