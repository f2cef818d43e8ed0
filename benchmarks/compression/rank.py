"""One rank that trains contenders, for their losses or for what their steps take on the link."""

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

from compression.contenders import CLIP, Adapted, Contender, Own, Planned, Setting, adamw
from compression.learning import LESSONS, Lesson, On, held_out_loss
from compression.making import contender
from compression.stepping import Stepped
from links.serving import serve

from distroml.runtime.compress.control import Change
from distroml.runtime.elastic import World


class Rank:
    """Answers the tasks; each is collective.

    `lesson` is a name of `LESSONS`, `size` this rank's part of a step's batch: tokens, or images.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._lessons: dict[str, Lesson] = {}
        self._standing: dict[str, tuple[Contender, Lesson, int]] = {}
        self._made: Counter[str] = Counter()

    def _lesson(self, name: str) -> Lesson:
        if name not in self._lessons:
            self._lessons[name] = On(LESSONS[name](), self.world.device)
        return self._lessons[name]

    def ready(self) -> dict[str, Any]:
        """Whether all ranks are there."""
        dist.barrier()
        return {"ready": True}

    def learn(
        self,
        setting: dict[str, Any],
        seed: int,
        size: int,
        steps: int,
        every: int,
        goal: float,
        lesson: str = "gpt",
        changes: list[dict[str, Any]] | None = None,
    ) -> Any:
        """Held-out losses after each `every` steps, up to `steps` or until one is at most `goal`."""
        recorded = [Change(**change) for change in changes] if changes is not None else None
        what = self._lesson(lesson)
        made = contender(what, Setting(**setting), seed, self.world, size, recorded)
        losses: list[float] = []
        started = time.perf_counter()
        for step in range(1, steps + 1):
            made.step(what.batch(seed, step, size, self.world))
            if step % every == 0:
                losses.append(self._held_out(made, what))
                if losses[-1] <= goal:
                    break
        made.close()
        return {"losses": losses, "seconds": time.perf_counter() - started}

    def stand(
        self, name: str, setting: dict[str, Any], size: int, seed: int = 0, lesson: str = "gpt", plan: str = ""
    ) -> dict[str, Any]:
        """Make a contender ready under a name, as whole copies or by a plan. Seconds: of choosing schemes."""
        what = self._lesson(lesson)
        # The one before of that name may have come to no end.
        self._made[name] = 0
        made: Contender = (
            Planned(what, Setting(**setting), plan, seed, self.world, size)
            if plan
            else contender(what, Setting(**setting), seed, self.world, size)
        )
        self._standing[name] = made, what, seed
        return {"seconds": made.choosing_s if isinstance(made, Adapted) else 0.0}

    def block(self, name: str, steps: int, size: int) -> dict[str, Any]:
        """Seconds of each of the next `steps` steps of a standing contender, and the bytes that it counted in them."""
        made, what, seed = self._standing[name]
        world = made.world if isinstance(made, Planned) else self.world
        before = made.counted_bytes if isinstance(made, Own) else 0
        taken: list[float] = []
        dist.barrier()
        for _ in range(steps):
            self._made[name] += 1
            batch = what.batch(seed, self._made[name], size, world)
            started = time.perf_counter()
            made.step(batch)
            taken.append(time.perf_counter() - started)
        counted = made.counted_bytes - before if isinstance(made, Own) else None
        return {"seconds": taken, "counted_bytes": counted}

    def decided(self, name: str) -> list[dict[str, Any]]:
        """What a standing contender with a controller decided so far."""
        made, _, _ = self._standing[name]
        return [asdict(change) for change in made.changes] if isinstance(made, Adapted) else []

    def end(self, name: str) -> dict[str, Any]:
        """The held-out loss of a standing contender, which is then let go."""
        made, what, _ = self._standing.pop(name)
        del self._made[name]
        loss = made.held_out_loss(what) if isinstance(made, Planned) else self._held_out(made, what)
        made.close()
        return {"loss": loss}

    def _held_out(self, made: Contender, what: Lesson) -> float:
        if isinstance(made, Stepped):
            made.check_met()
        return held_out_loss(what, made.model, self.world)

    def compute(self, steps: int, size: int, lesson: str = "gpt") -> dict[str, Any]:
        """Seconds of steps that exchange nothing: the limit of every contender."""
        what = self._lesson(lesson)
        model = what.make()
        optimizer = adamw(model.parameters(), 1e-3)
        taken: list[float] = []
        dist.barrier()
        for step in range(1, steps + 1):
            batch = what.batch(0, step, size, self.world)
            started = time.perf_counter()
            optimizer.zero_grad()
            total, count = what.loss(model, batch)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            taken.append(time.perf_counter() - started)
        return {"seconds": taken}


if __name__ == "__main__":
    serve(Rank, timeout_s=900)
