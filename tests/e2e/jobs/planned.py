"""A job whose plan is chosen, or given: `python planned.py STEPS [PLAN]`."""

import sys

import torch
from torch import nn

from distroml.runtime import DataLoader, Trainer, from_mean

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(256, 32, generator=generator)


class Rows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return len(inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs[index], inputs[index].flip(0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def net() -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(4)))


trainer = Trainer(
    model_factory=net,
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    loss=from_mean(lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])),
    data=DataLoader(Rows(), global_batch=16, seed=1),
    steps=int(sys.argv[1]),
    plan=sys.argv[2] if len(sys.argv) > 2 else "auto",
)
print("finished at", trainer.fit().step, flush=True)
