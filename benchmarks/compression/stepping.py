"""Contenders that step as `Trainer` does: optimizers whose momentum travels, and replicas that meet now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from compression.contenders import CLIP, Own, Setting, adamw, warm_up
from compression.learning import Lesson
from torch import nn
from torch.optim import Optimizer

from distroml.runtime import DGC, OneBitAdam
from distroml.runtime.compress.optim import CompressedOptimizer, OuterNesterov
from distroml.runtime.data import DataPosition, StepBatches, StepRange
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, choose_plan, spread
from distroml.runtime.training.step import Stepper
from distroml.runtime.training.votes import Wish

MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Way:
    """How replicas step: their optimizer, what they exchange, and by which scheme."""

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    compression: Compression


def way_of(text: str, learning_rate: float) -> Way | None:
    """What `text` names; None for a scheme, or anything else that is no way of stepping.

    - "onebit:WARM_UP[:SCHEME]": 1-bit Adam with as many plain steps; its scheme is "sign". Its variance has the usual
      memory of Adam, 1,000 steps, and not the 20 of the others: once frozen, that would be of the last batches alone.
    - "dgc:RATIO:RATE[:WARM_UP]": deep gradient compression, SGD with a learning rate of its own.
    - "sgd:RATE": plain sums and SGD with the same momentum: what DGC is to be held to.
    - "sync:H[:SCHEME]": meetings every H steps with DiLoCo's outer optimizer.
    - "local:H[:SCHEME]": the same, and parameters are averaged (local SGD).

    Raises:
        ValueError: something is missing, or is no number.
    """
    kind, _, rest = text.partition(":")
    first, _, more = rest.partition(":")
    match kind:
        case "onebit":
            steps = int(first)
            return Way(
                lambda p: OneBitAdam(p, learning_rate, warm_up_steps=steps, weight_decay=0.1),
                Compression(more or "sign"),
            )
        case "dgc":
            rate, _, steps_told = more.partition(":")
            return Way(
                lambda p: DGC(
                    p, float(rate), momentum=MOMENTUM, clip=CLIP, warm_up_steps=int(steps_told) if steps_told else 0
                ),
                Compression(f"topk:{first}"),
            )
        case "sgd":
            return Way(lambda p: torch.optim.SGD(p, float(first), momentum=MOMENTUM), Compression())
        case "sync" | "local":
            outer = OuterNesterov(int(first)) if kind == "sync" else OuterNesterov(int(first), lr=1.0, momentum=0.0)
            return Way(lambda p: adamw(p, learning_rate), Compression(more or "none", outer=outer))
        case _:
            return None


class _Feed:
    """A loader of the one batch that was set."""

    def __init__(self) -> None:
        self.batch: Any = None

    def step_batches(self, position: DataPosition, rank: int, ranks: int, microbatch: int | None) -> StepBatches[Any]:
        """See `DataLoader`."""
        del position, rank, ranks, microbatch
        none = StepRange(0, 0, 0)
        return StepBatches(none, none, [self.batch])


class Stepped(Own):
    """Whole copies that make `Trainer`'s own steps. Replicas that meet every H steps make a multiple of H."""

    def __init__(self, lesson: Lesson, setting: Setting, way: Way, seed: int, world: World) -> None:
        torch.manual_seed(seed)
        self.model = lesson.make()
        wish = f"dp_replicate={world.world_size},bucket_mb={setting.bucket_mb:g}"
        plan = choose_plan(self.model, wish, world, loss=lesson.loss, sample=None, global_batch=None, microbatch=None)
        self._parallel = spread(
            self.model,
            plan,
            world,
            loss=lesson.loss,
            sample=None,
            seed=seed,
            precision="fp32",
            compiled=False,
            compression=way.compression,
        )
        optimizer = way.optimizer(self._parallel.parameters())
        # Where momentum travels there is no sum of gradients to clip; DGC clips each rank's own.
        travels = isinstance(optimizer, CompressedOptimizer)
        if travels:
            self._parallel.exchange_for(optimizer, way.compression, 0)
        self._feed: Any = _Feed()
        self._stepper = Stepper(
            parallel=self._parallel,
            optimizer=optimizer,
            scheduler=warm_up(optimizer),
            data=self._feed,
            world=world,
            grad_clip=None if travels else CLIP,
            stop_at_non_finite=True,
            wishes=lambda: Wish.NONE,
        )
        self._number = 0
        self.counted_bytes = 0

    def step(self, batch: Any) -> None:
        self._number += 1
        self._feed.batch = batch
        self._stepper.run(self._number, DataPosition())
        self.counted_bytes += sum(self._parallel.sent().values())

    def check_met(self) -> None:
        """Raise `RuntimeError` between two meetings, where each replica has a model of its own."""
        meetings = self._parallel.meetings
        if meetings is not None and meetings.between:
            raise RuntimeError(
                f"after {self._number} steps replicas that meet every {meetings.outer.every} are each on their own: "
                "make a multiple of that"
            )
