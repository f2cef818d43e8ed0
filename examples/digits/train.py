"""Handwritten digits by plain torch.distributed: nothing of DistroML is imported, any launcher will do.

torchrun --nproc-per-node 2 train.py
distroml run --workers 2 train.py
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

WANTED_ACCURACY = 0.97


def load(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training and held-out images and labels; every fifth of a shuffled order is held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held, train = order[::5], order[torch.arange(len(order)) % 5 != 0]
    return images[train], labels[train], images[held], labels[held]


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 96),
        nn.ReLU(),
        nn.Linear(96, 10),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="samples per step, over all workers")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit("train.py: no RANK in the environment; start it with torchrun or `distroml run`")

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(arguments.seed)
    images, labels, held_images, held_labels = load(arguments.seed)
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate)
    per_rank = max(1, arguments.batch // world_size)

    for epoch in range(arguments.epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed + epoch))
        # Ranks take equal strides, so that all make the same number of steps.
        mine = order[: len(order) // world_size * world_size][rank::world_size]
        last = torch.zeros(1)
        for start in range(0, len(mine), per_rank):
            batch = mine[start : start + per_rank]
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last = loss.detach().reshape(1)
        dist.all_reduce(last)
        if rank == 0:
            print(f"epoch {epoch + 1}/{arguments.epochs}  loss {last.item() / world_size:.4f}", flush=True)

    with torch.no_grad():
        right = (model(held_images).argmax(1) == held_labels).sum().item()
    accuracy = right / len(held_labels)
    dist.destroy_process_group()
    if rank == 0:
        print(f"held-out accuracy {accuracy:.2%} ({right} of {len(held_labels)})", flush=True)
    if accuracy < WANTED_ACCURACY:
        print(f"below the wanted {WANTED_ACCURACY:.0%}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
