"""A step under the engine against hand-written PyTorch of the same plan, in the same two processes: at most 1.02.

Plans: whole copies, FSDP, tensor parallelism, a pipeline. Blocks of steps alternate (engine, hand-written; the order
within a pair swaps from pair to pair), both over the same batches, microbatches, clipping, AdamW and a loss that is
read in every step. That they do the same work is checked before anything is timed: their losses agree step by step,
but under tp, where taking a fused projection apart by hand draws other first weights.

The main figure is CPU time of both processes with all their threads, which neighbours disturb least; wall time and the
spread of the hand-written side against itself stand beside it.

    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py [--plan dp_shard=2] [--pairs 30] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _pairs import compare, summary

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import handwritten
from config import Config, read_config
from model import GPT, loss

from distroml.runtime import parallelize

WORLD_SIZE = 2
TARGET = 1.02
MICROBATCHES = 4  # of the pipeline; the other plans' ranks take their part at once
PLANS: dict[str, Callable[[Config], Any]] = {
    "dp_replicate=2": lambda config: handwritten.Ddp(config.model),
    "dp_shard=2": lambda config: handwritten.Fsdp(config.model),
    "tp=2": lambda config: handwritten.Tensor(config.model),
    "pp=2": lambda config: handwritten.Pipeline(config.model, MICROBATCHES, _microbatch("pp=2", config)),
}


def _share(plan: str, config: Config) -> int:
    """Samples of one data-parallel rank in a step."""
    return config.training.global_batch // (WORLD_SIZE if plan.startswith("dp") else 1)


def _microbatch(plan: str, config: Config) -> int:
    return _share(plan, config) // (MICROBATCHES if plan.startswith("pp") else 1)


class Engine:
    """A loop of one's own over `parallelize`."""

    def __init__(self, plan: str, config: Config) -> None:
        self.microbatch = _microbatch(plan, config)
        sample = torch.zeros(self.microbatch, config.model.context + 1, dtype=torch.uint8)
        self.parallel = parallelize(
            lambda: GPT(config.model),
            plan,
            loss=loss,
            sample=sample,
            global_batch=config.training.global_batch,
            microbatch=self.microbatch,
            seed=0,
        )
        self.optimizer = torch.optim.AdamW(self.parallel.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
        self.number = 0

    def step(self, batch: torch.Tensor) -> float:
        self.number += 1
        done = self.parallel.forward_backward(batch.split(self.microbatch), self.number)
        mean, _ = self.parallel.finish(done, grad_clip=handwritten.CLIP)
        self.optimizer.step()
        return float(mean)


def _batches(plan: str, config: Config, rank: int) -> Iterator[torch.Tensor]:
    """This rank's samples of each step, for ever; made beforehand, so that no side is charged for them."""
    numbers = torch.Generator().manual_seed(1)
    shape = (config.training.global_batch, config.model.context + 1)
    made = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers) for _ in range(16)]
    share = _share(plan, config)
    start = rank * share if share < shape[0] else 0
    return cycle([batch[start : start + share] for batch in made])


def _disagreement(plan: str, engine: list[float], hand: list[float], rank: int) -> float:
    """The largest relative difference of mean losses of any step, on the ranks where both tell one."""
    told = torch.tensor(hand, dtype=torch.float64)
    if plan.startswith("dp"):
        dist.all_reduce(told)
        told /= WORLD_SIZE
    own = torch.tensor(engine, dtype=torch.float64)
    here = (own / told - 1).abs().max() if not told.isnan().any() else torch.zeros((), dtype=torch.float64)
    dist.all_reduce(here, op=dist.ReduceOp.MAX)
    return here.item()


def compared(plan: str, config: Config, pairs: int, steps: int, rank: int) -> dict[str, Any]:
    """One plan's figures. Collective."""
    hand, engine = PLANS[plan](config), Engine(plan, config)
    first = list(islice(_batches(plan, config, rank), 5))
    losses = [[one.step(batch) for batch in first] for one in (engine, hand)]
    apart = _disagreement(plan, losses[0], losses[1], rank)
    if plan != "tp=2" and not apart < 1e-4:
        raise RuntimeError(f"{plan}: both sides must do the same work, but their losses are {apart:.1e} apart")

    def block(one: Any) -> Callable[[], None]:
        batches = _batches(plan, config, rank)

        def steps_of_it() -> None:
            for batch in islice(batches, steps):
                one.step(batch)

        return steps_of_it

    ours, theirs = block(engine), block(hand)
    found = compare(ours, theirs, pairs, steps)
    same = compare(theirs, theirs, max(2, pairs // 2), steps)
    return {
        "apart": apart,
        "hand_wall_s": statistics.median(found.wall_s),
        "hand_cpu_s": statistics.median(found.cpu_s),
        **{
            name: summary(ratios)
            for name, ratios in (
                ("cpu", found.cpu),
                ("aa_cpu", same.cpu),
                ("wall", found.wall),
                ("aa_wall", same.wall),
            )
        },
    }


def work(rank: int, plans: list[str], pairs: int, steps: int, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    config = read_config(Path(__file__).parents[1] / "examples" / "gpt" / "gpt.toml")
    for plan in plans:
        found = compared(plan, config, pairs, steps, rank)
        if rank == 0:
            answers.put((plan, found))
    dist.destroy_process_group()


def line(plan: str, found: dict[str, Any]) -> str:
    cpu, wall = found["cpu"], found["wall"]
    return (
        f"{plan:16}{1e3 * found['hand_cpu_s']:9.1f}"
        + "".join(f"{kind['median']:9.4f} +- {kind['median_error']:.4f}" for kind in (cpu, found["aa_cpu"]))
        + "".join(f"{kind['median']:9.4f} +- {kind['median_error']:.4f}" for kind in (wall, found["aa_wall"]))
        + ("   met" if cpu["median"] <= TARGET else "   missed")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="append", choices=PLANS, help="only this one; may be given several times")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two pairs of two steps; rough figures")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pairs, steps = (2, 2) if arguments.quick else (arguments.pairs, arguments.steps)
    plans = arguments.plan or list(PLANS)
    results: dict[str, Any] = {}
    print(f"{pairs} pairs of {steps}-step blocks; ratios are engine / hand-written, then hand-written / itself")
    print(f"{'plan':16}{'CPU ms':>9}{'CPU':>18} {'A/A':>18}{'wall':>19} {'A/A':>18}   CPU at most {TARGET}")
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        answers = context.SimpleQueue()
        ranks = [
            context.Process(target=work, args=(rank, plans, pairs, steps, f"{folder}/store", answers))
            for rank in range(WORLD_SIZE)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        while not answers.empty():
            plan, results[plan] = answers.get()
            print(line(plan, results[plan]), flush=True)
        if any(rank.exitcode for rank in ranks):
            sys.exit("a rank failed")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
