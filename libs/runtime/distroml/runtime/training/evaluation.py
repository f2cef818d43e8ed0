"""Means over a whole data set, spread over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distroml.runtime.data import DataLoader
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.training.randomness import seed_step
from distroml.runtime.training.step import to_device
from distroml.runtime.training.types import LossFunction, check_loss
from distroml.runtime.typed import floats


def evaluate(
    parallel: ParallelModel, data: DataLoader[Any], terms: Mapping[str, LossFunction[Any]], seed: int
) -> dict[str, float]:
    """For each of `terms` its global sum over its global count, in evaluation mode and without gradients. Collective.

    Every sample of `data` counts once at any world size. Random numbers drawn meanwhile depend on `seed` and rank.

    Raises:
        ValueError: a term counted nothing.
        PeerLost: another rank is gone.
    """
    world = parallel.collectives.world
    model = parallel.module
    seed_step(seed, -1, world.rank)
    sums = torch.zeros(len(terms), 2, dtype=torch.float64, device=world.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in data.pass_over(world.rank, world.world_size):
                batch = to_device(batch, world.device)
                for row, term in enumerate(terms.values()):
                    total, count = check_loss(term(model, batch))
                    sums[row, 0] += total
                    sums[row, 1] += count
    finally:
        model.train(was_training)
    parallel.collectives.sum(sums)
    result: dict[str, float] = {}
    for name, total, count in zip(terms, floats(sums[:, 0]), floats(sums[:, 1]), strict=True):
        if not count:
            raise ValueError(f"{name!r} counted no term over the whole evaluation data")
        result[name] = total / count
    return result
