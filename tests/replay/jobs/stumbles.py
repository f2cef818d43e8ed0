"""A tiny managed job whose second rank fails once, at step 15: `python stumbles.py STEPS MARKER`.

It has failed where the file MARKER exists.
"""

import os
import sys
from itertools import count
from pathlib import Path

import torch

from distroml.runtime import DataLoader, Trainer, from_mean

steps, marker = int(sys.argv[1]), Path(sys.argv[2])
inputs = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
losses = count(1)


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return len(inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return inputs[index]


def mean_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    if next(losses) == 15 and os.environ["RANK"] == "1" and not marker.exists():
        marker.touch()
        raise RuntimeError("the second rank stumbles, once")
    return torch.nn.functional.mse_loss(model(batch), batch)


trainer = Trainer(
    model_factory=lambda: torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 16)),
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    loss=from_mean(mean_loss),
    data=DataLoader(Rows(), global_batch=24, seed=1),
    steps=steps,
    checkpoint_every=10,
    seed=3,
)
print("finished at", trainer.fit().step, flush=True)
