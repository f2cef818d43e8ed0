"""Step time of `Trainer` against a plain loop of the same GPT on one GPU, in one process, in turn.

The loop is what a careful user writes: the mean loss, clipping, AdamW, and a loss that is read one step late. Reported:
the median over pairs of Trainer / loop, and each pair. On a GPU numbers of a step are read late by both, so that the
host runs ahead; 1.02 is wanted. On a processor the model is tiny, and the figures say only that it runs.

    python benchmarks/trainer_on_gpu.py [--device cuda] [--pairs 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from distroml.runtime import DataLoader, StepInfo, Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "gpt"))

from corpus import Windows, read_corpus
from model import GPT, ModelConfig, loss

WARM_UP = 10


def sizes(device: str) -> tuple[ModelConfig, int, int]:
    """A model whose step takes tens of milliseconds, its batch, and how many steps are timed."""
    if device == "cpu":
        return ModelConfig(width=32, layers=1, heads=2, context=32), 4, 10
    return ModelConfig(width=768, layers=8, heads=12, context=256), 16, 40


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    """The same for both."""
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def by_trainer(device: str, config: ModelConfig, windows: Windows, batch: int, steps: int) -> float:
    """Seconds per step of `Trainer.fit`, between two of its steps."""
    at: list[float] = []

    def note(info: StepInfo) -> None:
        if info.step in (WARM_UP, WARM_UP + steps):
            at.append(time.perf_counter())

    Trainer(
        model_factory=lambda: GPT(config),
        optimizer=optimizer,
        loss=loss,
        data=DataLoader(windows, batch, seed=1, collate=torch.stack),
        # One more: numbers of a step are known one step late on a GPU.
        steps=WARM_UP + steps + 1,
        grad_clip=1.0,
        device=device,
        callbacks=[note],
        checkpoint_dir=Path(tempfile.gettempdir()),
    ).fit()
    return (at[1] - at[0]) / steps


def by_hand(device: str, config: ModelConfig, windows: Windows, batch: int, steps: int) -> float:
    """Seconds per step of the loop."""
    torch.manual_seed(1)
    model = GPT(config).to(device)
    moving = optimizer(model.parameters())
    order = torch.randperm(len(windows)).tolist()
    before: torch.Tensor | None = None
    began = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            synchronise(device)
            began = time.perf_counter()
        taken = torch.stack([windows[index] for index in islice(order, step * batch, (step + 1) * batch)])
        total, count = loss(model, taken.to(device, non_blocking=True))
        mean = total / count
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        moving.step()
        moving.zero_grad()
        if before is not None:
            before.item()
        before = mean.detach()
    synchronise(device)
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one pair; rough figures")
    options = parser.parse_args()
    config, batch, steps = sizes(options.device)
    windows = Windows(read_corpus().train, config.context)
    arguments = (options.device, config, windows, batch, steps)
    ways = (by_trainer, by_hand)
    found: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for pair in range(1 + (1 if options.quick else options.pairs)):
        for way in ways if pair % 2 else ways[::-1]:
            seconds = way(*arguments)
            # The first pair warms up what both share, and does not count.
            found[way.__name__] += [seconds] if pair else []
    ratios = [a / b for a, b in zip(found["by_trainer"], found["by_hand"], strict=True)]
    medians = {f"{name}_s": statistics.median(values) for name, values in found.items()}
    body = {"device": options.device, **medians, "ratio": statistics.median(ratios), "ratios": ratios}
    print(json.dumps(body, indent=1))
    if options.json:
        options.json.write_text(json.dumps(body) + "\n")


if __name__ == "__main__":
    main()
