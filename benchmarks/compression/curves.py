"""How many steps contenders take to a loss, at full speed."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compression.contenders import Setting
from compression.kept import Kept
from compression.sources import of_losses
from links.workers import Workers

# Losses under one scheme do not depend on buckets. One holds all: with more, torch's PowerSGD can match the wrong
# collectives on Gloo.
_BUCKET_MB = 25.0
# Nobody needs this many times the dense run's steps and still wins.
_MOST = 4.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Which curves: of `tokens` per rank and step, evaluated after each `every` steps; `steps` are plain DDP's."""

    tokens: int
    steps: int
    seeds: int
    learning_rates: Sequence[float]
    every: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """Steps to the goal, mean over the seeds, each seed's, and with which learning rate."""

    steps: float
    each: tuple[float, ...]
    learning_rate: float


class Curves:
    """Held-out losses of contenders as they train, and when they reach a goal."""

    def __init__(self, kept: Kept, asked: Asked) -> None:
        self._kept, self._asked = kept, asked

    def goal(self, ranks: Workers) -> tuple[float, float]:
        """The loss of plain DDP after `steps`, mean over seeds, and its learning rate: the first seed's best."""
        steps = self._asked.steps

        def end(rate: float, seed: int) -> float:
            loss = self._losses(ranks, Setting("ddp", _BUCKET_MB, rate), seed, steps, 0.0)[-1]
            print(f"  plain DDP, learning rate {rate:g}, seed {seed}: {loss:.4f} after {steps} steps", flush=True)
            return loss

        first = {rate: end(rate, 0) for rate in self._asked.learning_rates}
        best = min(first, key=lambda rate: first[rate])
        return statistics.mean([first[best], *(end(best, seed) for seed in range(1, self._asked.seeds))]), best

    def arrival(
        self,
        ranks: Workers,
        exchange: str,
        goal: float,
        usual: float,
        *,
        bucket_mb: float = _BUCKET_MB,
        changes: Sequence[dict[str, Any]] | None = None,
    ) -> Arrival | None:
        """When `exchange` reaches `goal`, with the first seed's best learning rate; None: with none, or not every seed.

        `usual` is tried first: another rate must get there in fewer steps, and is not tried for longer.
        """
        every, most = self._asked.every, int(_MOST * self._asked.steps)

        def count(rate: float, seed: int, most: int) -> float | None:
            losses = self._losses(ranks, Setting(exchange, bucket_mb, rate), seed, most, goal, changes)
            found = _reached(losses, goal, every)
            shown = f"{found:.0f} steps" if found is not None else f"not within {most} steps"
            print(f"  {exchange}, learning rate {rate:g}, seed {seed}: {shown}", flush=True)
            return found

        best: tuple[float, float] | None = None
        for rate in sorted(self._asked.learning_rates, key=lambda rate: rate != usual):
            found = count(rate, 0, most if best is None else math.ceil(best[0] / every) * every)
            if found is not None:
                best = min(best or (found, rate), (found, rate))
        if best is None:
            return None
        counts = [best[0], *(count(best[1], seed, most) for seed in range(1, self._asked.seeds))]
        arrived = tuple(found for found in counts if found is not None)
        return Arrival(statistics.mean(arrived), arrived, best[1]) if len(arrived) == len(counts) else None

    def _losses(
        self,
        ranks: Workers,
        setting: Setting,
        seed: int,
        steps: int,
        goal: float,
        changes: Sequence[dict[str, Any]] | None = None,
    ) -> list[float]:
        """Held-out losses after each `every` steps, up to the first that is at most `goal`."""
        asked = self._asked
        which = (setting.exchange, setting.learning_rate, seed, asked.tokens, asked.every, steps, round(goal, 5))
        # Changes are of buckets by their numbers, which mean others at another size.
        replayed = (setting.bucket_mb, _digest(changes)) if changes is not None else ()
        key = ("curve", of_losses(), *which, *replayed)
        found = self._kept.get(*key)
        if found is None:
            task = {"do": "learn", "setting": asdict(setting), "seed": seed, "size": asked.tokens, "goal": goal}
            answers = ranks.ask({**task, "steps": steps, "every": asked.every, "changes": changes}, 3600)
            found = self._kept.put(answers[0]["losses"], *key)
        return found


def _digest(changes: Sequence[dict[str, Any]]) -> str:
    told = [[change[name] for name in ("bucket", "to_scheme", "from_step")] for change in changes]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _reached(losses: Sequence[float], goal: float, every: int) -> float | None:
    """After how many steps `goal` is reached, by a straight line between evaluations."""
    before: float | None = None
    for number, value in enumerate(losses):
        if value <= goal:
            part = 1.0 if before is None else (before - goal) / (before - value)
            return every * (number + part)
        before = value
    return None
