"""One rank of `time_to_loss`: trains contenders at full speed for their losses, and times their steps on the link."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gpt"))

from compression.contenders import CLIP, Adapted, Contender, Setting, adamw, contender
from corpus import Windows, read_corpus
from links.serving import serve
from model import GPT, ModelConfig, loss

from distroml.runtime.compress.control import Change
from distroml.runtime.elastic import World

# The model of the demo.
CONFIG = ModelConfig(layers=6, width=256, heads=4, context=128)
_HELD_OUT_WINDOWS = 64
_EVALUATION_BATCH = 32


class Rank:
    """Answers the tasks; each is collective."""

    def __init__(self, world: World) -> None:
        self.world = world
        corpus = read_corpus()
        self.train = Windows(corpus.train, CONFIG.context)
        held_out = Windows(corpus.held_out, CONFIG.context)
        spread = range(0, len(held_out), len(held_out) // _HELD_OUT_WINDOWS)[:_HELD_OUT_WINDOWS]
        self.held_out = torch.stack([held_out[index] for index in spread])
        self.standing: dict[str, Contender] = {}
        self.made: Counter[str] = Counter()

    def ready(self) -> dict[str, Any]:
        """Whether all ranks are there."""
        dist.barrier()
        return {"ready": True}

    def _windows(self, seed: int, step: int, tokens: int) -> torch.Tensor:
        """This rank's windows of one step: by seed and step only, whoever asks."""
        count = tokens // CONFIG.context
        chosen = torch.randint(
            len(self.train),
            (count * self.world.world_size,),
            generator=torch.Generator().manual_seed(seed * 1_000_003 + step),
        )
        mine = chosen[self.world.rank * count : (self.world.rank + 1) * count]
        return torch.stack([self.train[int(index)] for index in mine])

    def _held_out_loss(self, model: torch.nn.Module) -> float:
        """Mean loss per byte of the held-out windows, shared out over the ranks."""
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in self.held_out[self.world.rank :: self.world.world_size].split(_EVALUATION_BATCH):
                total, count = loss(model, batch)
                sums += torch.tensor([float(total), float(count)], dtype=torch.float64)
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])

    def learn(
        self,
        setting: dict[str, Any],
        seed: int,
        tokens: int,
        steps: int,
        every: int,
        goal: float,
        changes: list[dict[str, Any]] | None = None,
    ) -> Any:
        """Held-out losses after each `every` steps, up to `steps` or until one is at most `goal`."""
        recorded = [Change(**change) for change in changes] if changes is not None else None
        made = contender(CONFIG, Setting(**setting), seed, self.world, recorded)
        losses: list[float] = []
        started = time.perf_counter()
        for step in range(1, steps + 1):
            made.step(self._windows(seed, step, tokens))
            if step % every == 0:
                losses.append(self._held_out_loss(made.model))
                if losses[-1] <= goal:
                    break
        made.close()
        return {"losses": losses, "seconds": time.perf_counter() - started}

    def stand(self, name: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Make a contender ready under a name. Seconds: of choosing schemes, where it does."""
        made = self.standing[name] = contender(CONFIG, Setting(**setting), 0, self.world)
        return {"seconds": made.choosing_s if isinstance(made, Adapted) else 0.0}

    def decided(self, name: str) -> list[dict[str, Any]]:
        """What a standing contender with a controller decided so far."""
        standing = self.standing[name]
        return [asdict(change) for change in standing.changes] if isinstance(standing, Adapted) else []

    def block(self, name: str, steps: int, tokens: int) -> dict[str, Any]:
        """Seconds of each of the next `steps` steps of a standing contender."""
        taken: list[float] = []
        dist.barrier()
        for _ in range(steps):
            self.made[name] += 1
            windows = self._windows(0, self.made[name], tokens)
            started = time.perf_counter()
            self.standing[name].step(windows)
            taken.append(time.perf_counter() - started)
        return {"seconds": taken}

    def compute(self, steps: int, tokens: int) -> dict[str, Any]:
        """Seconds of steps that exchange nothing: the limit of every contender."""
        model = GPT(CONFIG)
        optimizer = adamw(model.parameters(), 1e-3)
        taken: list[float] = []
        dist.barrier()
        for step in range(1, steps + 1):
            windows = self._windows(0, step, tokens)
            started = time.perf_counter()
            optimizer.zero_grad()
            total, count = loss(model, windows)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            taken.append(time.perf_counter() - started)
        return {"seconds": taken}


if __name__ == "__main__":
    serve(Rank, timeout_s=900)
