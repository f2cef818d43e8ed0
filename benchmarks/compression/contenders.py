"""Ways to train whole copies of a model over a slow link: torch's DDP with its hooks, and ours.

All of them see the same batches in the same order, clip, warm up and use AdamW alike; only the exchange of gradients
and the learning rate differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from compression.learning import Lesson, mean_loss, split
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from distroml.objectstore.memory import MemoryObjectStore
from distroml.planner import parse_wish
from distroml.runtime.compress.control import Change
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import World
from distroml.runtime.link import NullLink
from distroml.runtime.parallel import Compression, choose_plan, parallelize, spread
from distroml.runtime.training.controlling import adapting_of, start
from distroml.runtime.training.places import Recorded
from distroml.runtime.training.recording import SchemeRecord
from distroml.runtime.training.storage import Storage

CLIP = 1.0
WARMUP_STEPS = 20
# Torch's PowerSGD must not begin before its buckets are rebuilt, after the first step.
POWERSGD_FROM = 2
# Samples of a forward pass under plans that divide the model.
MICROBATCH = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """One contender.

    `exchange`: "ddp", "ddp:fp16", "ddp:bf16", "ddp:powersgd:RANK", "own:SPEC" for a scheme of ours, "own:auto" for
    those that it chooses on the link that is there, "own:" and what `stepping.way_of` knows.
    """

    exchange: str
    bucket_mb: float
    learning_rate: float

    @property
    def dense_steps(self) -> int:
        """How many steps at the start exchange whole gradients."""
        return POWERSGD_FROM if "ddp:powersgd" in self.exchange else 0


class Contender(Protocol):
    """A model in training on one rank."""

    model: nn.Module

    def step(self, batch: Any) -> None:
        """One optimizer step on this rank's batch."""
        ...

    def close(self) -> None:
        """Let go of what outlives the object."""
        ...


def adamw(model_parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model_parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)


def warm_up(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))


class Ddp:
    """DistributedDataParallel, as its documentation shows it, with one of torch's own communication hooks."""

    def __init__(self, lesson: Lesson, setting: Setting, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = lesson.make()
        self._loss = lesson.loss
        self._parallel = nn.parallel.DistributedDataParallel(
            self.model, gradient_as_bucket_view=True, bucket_cap_mb=setting.bucket_mb
        )
        self._optimizer = adamw(self.model.parameters(), setting.learning_rate)
        self._warm_up = warm_up(self._optimizer)
        _, _, hook = setting.exchange.partition(":")
        if hook in ("fp16", "bf16"):
            made: Callable[..., Any] = (
                default_hooks.fp16_compress_hook if hook == "fp16" else default_hooks.bf16_compress_hook
            )
            self._parallel.register_comm_hook(None, made)
        elif hook:
            state = powerSGD_hook.PowerSGDState(
                process_group=None,
                matrix_approximation_rank=int(hook.rpartition(":")[2]),
                start_powerSGD_iter=POWERSGD_FROM,
                warm_start=True,
            )
            self._parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def step(self, batch: Any) -> None:
        self._optimizer.zero_grad()
        total, count = self._loss(self._parallel, batch)
        (total / count).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self._optimizer.step()
        self._warm_up.step()

    def close(self) -> None:
        del self._parallel


class Own:
    """Whole copies with a compression of ours. `counted_bytes` are what it says that it sent for gradients so far."""

    def __init__(self, lesson: Lesson, setting: Setting, seed: int, world: World) -> None:
        torch.manual_seed(seed)
        self.model = lesson.make()
        wish = f"dp_replicate={world.world_size},bucket_mb={setting.bucket_mb:g}"
        plan = choose_plan(self.model, wish, world, loss=lesson.loss, sample=None, global_batch=None, microbatch=None)
        # Not by `parallelize`, which refuses "auto": the controller comes with who adapts, or replays.
        self._parallel = spread(
            self.model,
            plan,
            world,
            loss=lesson.loss,
            sample=None,
            seed=0,
            precision="fp32",
            compiled=False,
            compression=Compression(setting.exchange.partition(":")[2]),
        )
        self._optimizer = adamw(self._parallel.parameters(), setting.learning_rate)
        self._warm_up = warm_up(self._optimizer)
        self._number = 0
        self.counted_bytes = 0

    def step(self, batch: Any) -> None:
        self._number += 1
        self._train([batch])

    def _train(self, batches: Sequence[Any]) -> float:
        done = self._parallel.forward_backward(batches, self._number)
        mean, _ = self._parallel.finish(done, CLIP)
        self._optimizer.step()
        self._warm_up.step()
        self.counted_bytes += sum(self._parallel.sent().values())
        return float(mean)

    def close(self) -> None:
        self._parallel.close()


class Adapted(Own):
    """With the controller that `Trainer(compress="auto")` has.

    Attributes:
        changes: all that it decided so far.
        choosing_s: what trying codecs, the link and a forward pass before step 1 took.
    """

    def __init__(self, lesson: Lesson, setting: Setting, seed: int, world: World, sample: Any) -> None:
        super().__init__(lesson, setting, seed, world)
        recorded: Recorded = {}
        started = time.perf_counter()
        record = SchemeRecord(Storage(MemoryObjectStore(), "benchmark", None), world.generation)
        adapting = adapting_of(self._parallel, NullLink(), world, recorded, record)
        assert adapting is not None
        (kept,) = recorded.values()
        self.changes = kept.changes
        self._adapting = adapting
        start(adapting, self._parallel, sample, 1, 0, "")
        self.choosing_s = time.perf_counter() - started
        # What probes sent before the first step is of no step.
        self._parallel.sent()

    def step(self, batch: Any) -> None:
        self._number += 1
        started = time.perf_counter()
        self._adapting.begin(self._number)
        loss = self._train([batch])
        self._adapting.end(self._number)
        self._adapting.note(time.perf_counter() - started, loss)


class Replayed(Own):
    """With changes of schemes that were recorded of another run."""

    def __init__(self, lesson: Lesson, setting: Setting, seed: int, world: World, changes: Sequence[Change]) -> None:
        super().__init__(lesson, setting, seed, world)
        exchange = self._parallel.exchange
        assert exchange is not None
        numbers = [buffer.number for buffer in exchange.buffers if buffer.spec.numel]
        for change in changes:
            exchange.set_scheme(numbers[change.bucket], parse_scheme(change.to_scheme), change.from_step)


class Planned(Own):
    """Under a plan that divides the model, in microbatches. `world` is of ranks that have different samples."""

    def __init__(self, lesson: Lesson, setting: Setting, plan: str, seed: int, world: World, size: int) -> None:
        wish = parse_wish(plan)
        parts = split(lesson.batch(seed, 0, size, world), MICROBATCH)
        self._parallel = parallelize(
            lesson.make,
            plan,
            world=world,
            loss=lesson.loss,
            sample=parts[0],
            global_batch=MICROBATCH * len(parts) * (wish.dp_replicate or 1) * (wish.dp_shard or 1),
            microbatch=MICROBATCH,
            seed=seed,
            compress=setting.exchange.partition(":")[2],
        )
        self.model = self._parallel.module
        self.world = replace(world, rank=self._parallel.mesh.dp_rank, world_size=self._parallel.mesh.dp_size)
        self._optimizer = adamw(self._parallel.parameters(), setting.learning_rate)
        self._warm_up = warm_up(self._optimizer)
        self._number = 0
        self.counted_bytes = 0

    def step(self, batch: Any) -> None:
        self._number += 1
        self._train(split(batch, MICROBATCH))

    def held_out_loss(self, lesson: Lesson) -> float:
        """Of all ranks together. Collective."""
        shares = lesson.held_out(self.world.rank, self.world.world_size)
        found = (self._parallel.measure(few) for share in shares for few in split(share, MICROBATCH))
        return mean_loss(found, self.world.device)
