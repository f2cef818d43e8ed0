"""A small training under Trainer, for the checks: one line of JSON per step, and a result at the end.

    train.py OUT DEVICE [--steps N] [--pause-s S] [--dropout P] [--compress SCHEME] [--kill-at STEP] [--fill]

With `--kill-at` the last rank of the first generation kills itself after that step; with `--fill` it asks for more
memory than its device has.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from distroml.runtime import DataLoader, StepInfo, Trainer

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
WIDTH, HIDDEN = 64, 256


class Numbers:
    """Points and a function of them, the same in every run."""

    def __init__(self, count: int) -> None:
        self.x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(7))
        self.y = torch.sin(self.x.sum(1, keepdim=True))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


def make_model(dropout: float) -> nn.Module:
    """Two hidden layers."""
    hidden = (nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Dropout(dropout), nn.Linear(HIDDEN, HIDDEN), nn.GELU())
    return nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(HIDDEN, 1))


def loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """The sum of squares, and of how many."""
    return ((model(batch[0]) - batch[1]) ** 2).sum(), len(batch[0])


def main() -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("device")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pause-s", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--compress", default="none")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--fill", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    # NCCL refuses two ranks on one GPU of one host. As hosts of their own they talk through sockets.
    os.environ["NCCL_HOSTID"] = f"{os.uname().nodename}-{os.getpid()}"

    def note(info: StepInfo) -> None:
        world = trainer.world
        assert world is not None
        line = {"generation": world.generation, "step": info.step, "loss": info.loss, "device": str(world.device)}
        if world.is_main:
            with (options.out / "steps.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        time.sleep(options.pause_s)
        if options.fill:
            torch.empty(1 << 50, dtype=torch.uint8, device=world.device)
        if world.generation == 1 and world.rank == world.world_size - 1 and info.step == options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    data: DataLoader[Batch] = DataLoader(Numbers(512), 64, seed=3)
    trainer = Trainer(
        model_factory=lambda: make_model(options.dropout),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        loss=loss,
        data=data,
        steps=options.steps,
        checkpoint_every=5,
        checkpoint_dir=options.out / "checkpoints",
        grad_clip=1.0,
        seed=11,
        callbacks=[note],
        device=options.device,
        compress=options.compress,
    )
    result = trainer.fit()
    if result.rank:
        print(f"rank {result.rank} ends with {result.fingerprint}")
        return
    body = {"step": result.step, "loss": result.loss, "fingerprint": result.fingerprint, "world": result.world_size}
    (options.out / "result.json").write_text(json.dumps(body))


if __name__ == "__main__":
    main()
