"""A tiny managed job at a step each tenth of a second: `python steady.py FOLDER STEPS`.

For every step it adds to `FOLDER/steps-RANK` when it came (nanoseconds of this machine's monotonic clock) and which
process made it, so that steps are seen with all of the control plane away, and prints a numbered line. What its saves
warn of is in `FOLDER/saves-RANK`, and the number of each optimizer step in `FOLDER/numbers-RANK`. Where `FOLDER/until`
has a number it makes no more steps than that.
"""

import logging
import os
import struct
import sys
import time
from itertools import count
from pathlib import Path

import torch

from distroml.runtime import DataLoader, StepInfo, Trainer, from_mean

folder = Path(sys.argv[1])
steps = int(sys.argv[2])
inputs = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
made = (folder / f"steps-{os.environ['RANK']}").open("ab", buffering=0)
trained = (folder / f"numbers-{os.environ['RANK']}").open("ab", buffering=0)
numbers = count(1)
saves = logging.FileHandler(folder / f"saves-{os.environ['RANK']}")
logging.getLogger("distroml.runtime.checkpoint").addHandler(saves)


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return len(inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return inputs[index]


def wait_for_leave(number: int) -> None:
    until = folder / "until"
    while until.exists() and number > int(until.read_text()):
        time.sleep(0.05)


def mean_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    number = next(numbers)
    wait_for_leave(number)
    time.sleep(0.1)
    made.write(struct.pack("<qq", time.monotonic_ns(), os.getpid()))
    # At once: what another thread says must not come between.
    sys.stdout.write(f"line {number}\n")
    sys.stdout.flush()
    return torch.nn.functional.mse_loss(model(batch), batch)


def note(info: StepInfo) -> None:
    trained.write(struct.pack("<q", info.step))


trainer = Trainer(
    model_factory=lambda: torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 16)),
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    loss=from_mean(mean_loss),
    data=DataLoader(Rows(), global_batch=24, seed=1),
    steps=steps,
    checkpoint_every=20,
    callbacks=[note],
    seed=3,
)
print("finished at", trainer.fit().step, flush=True)
