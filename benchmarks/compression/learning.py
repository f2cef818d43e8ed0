"""What contenders learn: the example GPT on text, a small one, and a convolutional net on handwritten digits."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from distroml.runtime.elastic import World

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gpt"))

import model as gpt
from corpus import Windows, read_corpus

_HELD_OUT_WINDOWS = 64
_EVALUATION_BATCH = 32

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, int | torch.Tensor]]


class Lesson(Protocol):
    """A model, its data, and how well it knows them. All contenders see the same batches in the same order."""

    loss: Loss
    """Sum over a batch's terms, and how many they are."""

    def make(self) -> nn.Module:
        """A new model, its weights by torch's seed."""
        ...

    def batch(self, seed: int, step: int, size: int, world: World) -> Any:
        """This rank's part of one step's batch, by seed and step only."""
        ...

    def held_out(self, rank: int, ranks: int) -> Sequence[Any]:
        """What is held out, as batches: this rank's share of it."""
        ...


class Text:
    """The demo's model on the standard library's source; `size` is in tokens per rank."""

    config = gpt.ModelConfig(layers=6, width=256, heads=4, context=128)
    loss: Loss = staticmethod(gpt.loss)

    def __init__(self) -> None:
        corpus = read_corpus()
        self._train = Windows(corpus.train, self.config.context)
        held_out = Windows(corpus.held_out, self.config.context)
        spread = range(0, len(held_out), len(held_out) // _HELD_OUT_WINDOWS)[:_HELD_OUT_WINDOWS]
        self._held_out = torch.stack([held_out[index] for index in spread])

    def make(self) -> nn.Module:
        """See `Lesson`."""
        return gpt.GPT(self.config)

    def batch(self, seed: int, step: int, size: int, world: World) -> torch.Tensor:
        """uint8 `[windows, context + 1]`."""
        chosen = _chosen(len(self._train), size // self.config.context, seed, step, world)
        return torch.stack([self._train[int(index)] for index in chosen])

    def held_out(self, rank: int, ranks: int) -> Sequence[torch.Tensor]:
        """See `Lesson`."""
        return self._held_out[rank::ranks].split(_EVALUATION_BATCH)


class Small(Text):
    """The same with 0.25 million parameters, which trains in seconds under any plan."""

    config = gpt.ModelConfig(layers=4, width=64, heads=4, context=64)


class Digits:
    """A convolutional net on scikit-learn's digits, every fifth held out; `size` is in images per rank."""

    def __init__(self) -> None:
        images, labels, held_images, held_labels = _example_digits()["load"](seed=0)
        self._train = images, labels
        self._held_out = held_images, held_labels

    @staticmethod
    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """Cross entropy."""
        images, labels = batch
        return F.cross_entropy(model(images), labels, reduction="sum"), len(labels)

    def make(self) -> nn.Module:
        """Two convolutions and two linear layers, 300,000 parameters."""
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )

    def batch(self, seed: int, step: int, size: int, world: World) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[n, 1, 8, 8]` and labels."""
        images, labels = self._train
        chosen = _chosen(len(images), size, seed, step, world)
        return images[chosen], labels[chosen]

    def held_out(self, rank: int, ranks: int) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """See `Lesson`."""
        images, labels = (held[rank::ranks] for held in self._held_out)
        return [(images, labels)]


class On:
    """A lesson whose model and batches are on a device. First weights and choices are drawn on the processor."""

    def __init__(self, lesson: Lesson, device: torch.device) -> None:
        self._lesson, self._device = lesson, device
        self.loss: Loss = lesson.loss

    def make(self) -> nn.Module:
        """See `Lesson`."""
        return self._lesson.make().to(self._device)

    def batch(self, seed: int, step: int, size: int, world: World) -> Any:
        """See `Lesson`."""
        return self._there(self._lesson.batch(seed, step, size, world))

    def held_out(self, rank: int, ranks: int) -> Sequence[Any]:
        """See `Lesson`."""
        return [self._there(one) for one in self._lesson.held_out(rank, ranks)]

    def _there(self, batch: Any) -> Any:
        if isinstance(batch, torch.Tensor):
            return batch.to(self._device)
        return tuple(part.to(self._device) for part in batch)


LESSONS: dict[str, Callable[[], Lesson]] = {"gpt": Text, "small": Small, "digits": Digits}


def split(batch: Any, size: int) -> list[Any]:
    """A batch of any lesson in parts of at most `size` samples."""
    if isinstance(batch, torch.Tensor):
        return list(batch.split(size))
    return list(zip(*(part.split(size) for part in batch), strict=True))


def _example_digits() -> dict[str, Any]:
    # By path: the examples' scripts bear the same name.
    return runpy.run_path(str(Path(__file__).parents[2] / "examples" / "digits" / "train.py"), run_name="digits")


def _chosen(known: int, count: int, seed: int, step: int, world: World) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randint(known, (count * world.world_size,), generator=generator)[world.rank * count :][:count]


def held_out_loss(lesson: Lesson, model: nn.Module, world: World) -> float:
    """Mean loss of what is held out, per term, of a model that every rank has. Collective."""
    with torch.no_grad():
        found = (lesson.loss(model, batch) for batch in lesson.held_out(world.rank, world.world_size))
        return mean_loss(found, world.device)


def mean_loss(found: Iterable[tuple[torch.Tensor | int, torch.Tensor | int]], device: torch.device) -> float:
    """The mean of sums and counts of all ranks, who meet on `device`. Collective."""
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for total, count in found:
        sums += torch.tensor([float(total), float(count)], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return float(sums[0] / sums[1])
