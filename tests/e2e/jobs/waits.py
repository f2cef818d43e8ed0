"""A job that mostly waits for its gradients: `python waits.py STEPS`. Four million parameters see one row each step."""

import sys

import torch
from torch import nn

from distroml.runtime import DataLoader, Trainer, from_mean

WIDTH = 2048


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(index))


trainer = Trainer(
    model_factory=lambda: nn.Linear(WIDTH, WIDTH),
    optimizer=lambda params: torch.optim.SGD(params, lr=1e-3),
    loss=from_mean(lambda model, batch: nn.functional.mse_loss(model(batch), batch)),
    data=DataLoader(Rows(), global_batch=2, seed=1),
    steps=int(sys.argv[1]),
)
print("finished at", trainer.fit().step, flush=True)
