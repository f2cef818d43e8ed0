"""Trains a small model under several plans: `python -m libs.runtime.tests.comm.training OUT`, by mpirun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from distroml.runtime import DataLoader, Trainer

PLANS = ("dp_replicate=2", "dp_shard=2", "tp=2", "pp=2")
STEPS = 6


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


def losses(plan: str) -> list[float]:
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
        plan=plan,
        device="cpu",
        seed=3,
    )
    made = [step.loss for step in trainer.steps()]
    trainer.close()
    return made


def by_plan(ports: Sequence[int] = ()) -> dict[str, list[float]]:
    """Each plan's world has a store of its own: under Gloo at one of `ports`, under MPI where the back end opens it."""
    told: dict[str, list[float]] = {}
    for number, plan in enumerate(PLANS):
        if ports:
            os.environ["MASTER_PORT"] = str(ports[number])
        told[plan] = losses(plan)
    return told


def main(out: Path) -> None:
    torch.set_num_threads(1)
    told = by_plan()
    if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
        out.write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
