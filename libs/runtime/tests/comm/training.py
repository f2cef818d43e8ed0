"""Trains a small model under several settings: `python -m libs.runtime.tests.comm.training OUT`, by mpirun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from distroml.runtime import DataLoader, Trainer
from libs.runtime.tests.comm import rank
from libs.runtime.tests.comm.reducer_cases import REDUCERS

# What `Trainer` is given.
TRAININGS: dict[str, dict[str, str]] = {
    "dp_replicate": {"plan": "dp_replicate=2"},
    "dp_shard": {"plan": "dp_shard=2"},
    "tp": {"plan": "tp=2"},
    "pp": {"plan": "pp=2"},
    "dp_replicate, int8": {"plan": "dp_replicate=2", "compress": "int8"},
    "dp_shard, int8": {"plan": "dp_shard=2", "compress_shard": "int8", "compress_gather": "int8"},
}
STEPS = 6


class Told(TypedDict):
    """What a rank says: losses by training, what was wrong by case."""

    losses: dict[str, list[float]]
    wrong: dict[str, str]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def squares(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    x, y = batch
    return (model(x) - y).square().sum(), len(x)


def trained(options: dict[str, str]) -> list[float]:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    data = DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), global_batch=16, seed=1)
    trainer = Trainer(
        model_factory=Net,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        loss=squares,
        data=data,
        steps=STEPS,
        grad_clip=1.0,
        device="cpu",
        seed=3,
        **options,
    )
    made = [step.loss for step in trainer.steps()]
    trainer.close()
    return made


def told(backend: str, ports: Sequence[int] = ()) -> Told:
    """Losses of every training, and what is wrong in cases of what they exchange by.

    Each has a world, and each world a store of its own: at one of `ports`, or where the back end opens it.
    """
    losses: dict[str, list[float]] = {}
    free = iter(ports)
    for name, options in TRAININGS.items():
        _at(free)
        losses[name] = trained(options)
    _at(free)
    world, group = rank.opened(backend, 60.0)
    wrong = rank.conforming(world, REDUCERS.cases_of(world.world_size))
    group.close(broken=any(wrong.values()))
    return {"losses": losses, "wrong": wrong}


def _at(free: Iterator[int]) -> None:
    if port := next(free, None):
        os.environ["MASTER_PORT"] = str(port)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    (out / f"{os.environ['OMPI_COMM_WORLD_RANK']}.json").write_text(json.dumps(told("mpi")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
