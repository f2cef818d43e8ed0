"""What ranks of the pool do in place of processes of their own, which would each import torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch.distributed as dist

from distroml.runtime.elastic import World
from libs.runtime.tests.comm import rank, training


@contextmanager
def _started_alone(world: World) -> Iterator[None]:
    """The environment of a rank that a launcher started, which has no group yet."""
    dist.destroy_process_group()
    told = {"RANK": world.rank, "LOCAL_RANK": world.rank, "WORLD_SIZE": world.world_size, "MASTER_ADDR": "127.0.0.1"}
    with mock.patch.dict(os.environ, {name: str(value) for name, value in told.items()}):
        yield


def conform(world: World, port: int) -> dict[str, str]:
    """What was wrong in each case over Gloo."""
    with _started_alone(world), warnings.catch_warnings():
        warnings.simplefilter("error")
        os.environ["MASTER_PORT"] = str(port)
        own, group = rank.opened("gloo", 60.0)
        told = rank.conforming(own, rank.cases_for("gloo", own.world_size))
        group.close(broken=False)
        return told


def train(world: World, ports: list[int]) -> training.Told:
    """What a rank of trainings over Gloo says."""
    with _started_alone(world):
        return training.told("gloo", ports)
