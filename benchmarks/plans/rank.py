"""One rank of `plan_accuracy`: says what the planner promises here, and runs plans to see what they take."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from links.serving import serve
from plans.models import MODELS, Case

from distroml.planner import Prediction, Pricer, complete, parse_wish
from distroml.runtime.elastic import World
from distroml.runtime.parallel import parallelize
from distroml.runtime.parallel.live import Workload, choose, survey

_SETTLE_STEPS = 2


class Runner:
    """A model under one plan, ready to make steps on its own data."""

    def __init__(self, case: Case, plan: str, world: World) -> None:
        # Where first weights come from does not matter here, but that tensors lie as in a job does.
        self.parallel = parallelize(
            case.make, plan, world=world, loss=case.loss, sample=case.batch(2), global_batch=case.global_batch
        )
        self.optimizer = case.optimizer(self.parallel.parameters())
        share = case.global_batch // self.parallel.plan.dp
        size = self.parallel.plan.microbatch or share
        self.batches = [case.batch(size) for _ in range(share // size)]
        self.step_number = 0

    def step(self) -> float:
        """Seconds of one step, on this rank's clock."""
        started = time.perf_counter()
        self.step_number += 1
        done = self.parallel.forward_backward(self.batches, self.step_number)
        loss, _ = self.parallel.finish(done, 1.0)
        self.optimizer.step()
        float(loss)
        return time.perf_counter() - started

    def block(self, seconds: float, most: int) -> list[float]:
        """Steps for about as long, as many on every rank: the first one's time tells how many."""
        first = torch.tensor([self.step()])
        dist.all_reduce(first, op=dist.ReduceOp.MAX)
        many = max(3, min(most, int(seconds / float(first))))
        return [self.step() for _ in range(many)]


class Rank:
    """Answers the tasks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.surveys: dict[str, Any] = {}

    def ready(self) -> dict[str, Any]:
        """Whether all ranks are there."""
        dist.barrier()
        return {"ready": True}

    def plans(self, model: str, seed: int, many: int) -> dict[str, Any]:
        """The chosen plan and `many` others with their predictions: the best five, and others as the seed has it."""
        case = MODELS[model]
        started = time.monotonic()
        torch.manual_seed(0)
        module = case.make()
        with tempfile.TemporaryDirectory() as cache:
            work = Workload(
                model=module,
                loss=case.loss,
                sample=case.batch(case.global_batch),
                optimizer=case.optimizer,
                global_batch=case.global_batch,
            )
            found = survey(work, self.world, Path(cache))
        took = time.monotonic() - started
        if self.world.rank:
            return {}
        chosen = choose(found, case.global_batch, parse_wish("auto"))
        pricer = Pricer(found.profile, found.topology, found.training, case.global_batch, measured=found.units)
        predicted: dict[str, Prediction] = {str(chosen.plan): chosen.prediction}
        for wish in _wishes(self.world.world_size, found.profile.block_count, case.global_batch):
            one = complete(pricer, parse_wish(wish))
            if isinstance(one, Prediction):
                predicted.setdefault(str(one.plan), one)
        ranked = sorted(predicted, key=lambda plan: predicted[plan].step_seconds)
        best = [str(chosen.plan), *[plan for plan in ranked if plan != str(chosen.plan)][:5]]
        others = [plan for plan in ranked if plan not in best]
        random.Random(seed).shuffle(others)
        told = [*best, *others[: many - len(best)]]
        return {
            "chosen": str(chosen.plan),
            "possible": len(ranked),
            "seconds": took,
            "links": [[level.name, level.latency_s, level.bytes_per_s] for level in found.topology.levels],
            "plans": [
                {"plan": plan, "seconds": predicted[plan].step_seconds, "parts": dict(predicted[plan].seconds)}
                for plan in told
            ],
        }

    def measure(self, model: str, plan: str, seconds: float, most: int) -> dict[str, Any]:
        """The median seconds of a step."""
        runner = Runner(MODELS[model], plan, self.world)
        for _ in range(_SETTLE_STEPS):
            runner.step()
        times = runner.block(seconds, most)
        runner.parallel.close()
        return {"seconds": statistics.median(times)}

    def duel(self, model: str, plans: list[str], rounds: int, seconds: float, most: int) -> dict[str, Any]:
        """The median seconds of a step under each of `plans`, in turn: what disturbs one disturbs the others."""
        runners = [Runner(MODELS[model], plan, self.world) for plan in plans]
        for runner in runners:
            for _ in range(_SETTLE_STEPS):
                runner.step()
        times: list[list[float]] = [[] for _ in plans]
        for _ in range(rounds):
            for own, runner in zip(times, runners, strict=True):
                own += runner.block(seconds, most)
        for runner in runners:
            runner.parallel.close()
        return {"seconds": [statistics.median(own) for own in times]}


def _wishes(world: int, blocks: int, batch: int) -> Iterator[str]:
    """Everything that can be asked for with `world` ranks; much of it will be refused."""
    sizes = [size for size in range(1, world + 1) if world % size == 0]
    for tp, pp, shard in itertools.product(sizes, sizes, sizes):
        if world % (tp * pp * shard):
            continue
        mesh = f"dp_replicate={world // tp // pp // shard},dp_shard={shard},tp={tp},pp={pp}"
        share = batch * tp * pp // world
        for size, again in itertools.product((1, 2, 4, 8, 16, 32), ("none", "selective", "full")):
            if share % size:
                continue
            text = f"{mesh},microbatch={size},recompute={again}"
            if pp > 1:
                for schedule in ("gpipe", "1f1b", "interleaved", "zero_bubble"):
                    yield f"{text},schedule={schedule}"
            elif shard > 1:
                for keeps in ("yes", "no"):
                    yield f"{text},reshard_after_forward={keeps}"
            else:
                yield text


if __name__ == "__main__":
    serve(Rank, timeout_s=120)
