"""Means over a whole data set, spread over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distroml.runtime.data import DataLoader
from distroml.runtime.elastic import heard
from distroml.runtime.parallel import LossFunction, ParallelModel, seed_pass
from distroml.runtime.training.step import to_device


def evaluate(
    parallel: ParallelModel, data: DataLoader[Any], terms: Mapping[str, LossFunction[Any]], seed: int
) -> dict[str, float]:
    """For each of `terms` its global sum over its global count, in evaluation mode and without gradients. Collective.

    Every sample of `data` counts once at any world size. Random numbers drawn meanwhile depend on `seed` and rank.

    Raises:
        ValueError: a term counted nothing.
        PeerLost: another rank is gone.
    """
    world, mesh = parallel.collectives.world, parallel.mesh
    seed_pass(seed, -1, mesh.dp_rank, 0, 0)
    sums = torch.zeros(len(terms), 2, dtype=torch.float64, device=world.device)
    was_training = parallel.module.training
    parallel.module.eval()
    # Under most plans a pass is a collective: then all ranks make the same number of them.
    together = parallel.plan.world_size > parallel.plan.dp_replicate
    try:
        for batch, counts in data.pass_over(mesh.dp_rank, mesh.dp_size, together=together):
            batch = to_device(batch, world.device)
            for row, (name, term) in enumerate(terms.items()):
                total, count = parallel.measure(batch, term, name)
                if counts:
                    sums[row, 0] += total
                    sums[row, 1] += count
    finally:
        parallel.module.train(was_training)
    parallel.collectives.sum(sums)
    result: dict[str, float] = {}
    for name, total, count in zip(terms, heard(sums[:, 0]), heard(sums[:, 1]), strict=True):
        if not count:
            raise ValueError(f"{name!r} counted no term over the whole evaluation data")
        result[name] = total / count
    return result
