"""A tiny managed job: `python tiny.py STEPS [SECONDS_PER_STEP GATE]`: slow until the file GATE exists.

It has made its first checkpoints soon; then slow steps take longer and longer, so that few of them give a test time
enough on a busy machine, too.
"""

import itertools
import sys
import time
from pathlib import Path

import torch

from distroml.runtime import DataLoader, Trainer, from_mean

steps = int(sys.argv[1])
pace, gate = (float(sys.argv[2]), Path(sys.argv[3])) if len(sys.argv) > 2 else (0.0, Path("/"))
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(512, 16, generator=generator)
targets = inputs @ torch.randn(16, 4, generator=generator)


class Rows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return len(inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs[index], targets[index]


slow_steps = itertools.count(1)


def wait_at_gate() -> None:
    until = time.monotonic() + pace * max(1.0, next(slow_steps) / 20)
    while not gate.exists() and time.monotonic() < until:
        time.sleep(0.02)


def mean_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    wait_at_gate()
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])


trainer = Trainer(
    model_factory=lambda: torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4)),
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    loss=from_mean(mean_loss),
    data=DataLoader(Rows(), global_batch=24, seed=1),
    steps=steps,
    checkpoint_every=10,
    seed=3,
)
print("finished at", trainer.fit().step, flush=True)
