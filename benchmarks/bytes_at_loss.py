"""How many bytes gradients cost at a loss no worse than that of plain training, after as many steps.

Two ranks train the example GPT (or a convolutional net on scikit-learn's digits), each between two hosts of its own,
so that bytes are what the interface sent: warm-up, scales, indices and all phases, headers too. A scheme keeps the loss
where its mean over the seeds is at most the dense mean plus one standard deviation of the dense runs. torch's own hooks
stand beside. Learning rate and all else are the same for all.

    sudo OMP_NUM_THREADS=1 python benchmarks/bytes_at_loss.py [--lesson digits] [--schemes powersgd:16+int8,int4]

Needs root and iproute2. With a plan, four ranks of this machine train a small GPT by it, and bytes are those that rank
0 counts along dp_replicate:

    OMP_NUM_THREADS=1 python benchmarks/bytes_at_loss.py --plan dp_replicate=2,tp=2

Results are kept in build/time_to_loss.json; --fresh forgets them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from compression.contenders import Setting
from compression.kept import Kept
from compression.timing import SCRIPT, check_counted
from links.namespaces import hosts
from links.workers import workers

# One bucket: with more, torch's PowerSGD can match the wrong collectives on Gloo.
BUCKET_MB = 25.0
HOOKS = ("ddp:bf16", "ddp:powersgd:16")


@dataclass(frozen=True, slots=True)
class Usual:
    """What a lesson is trained with: `size` per rank and step in tokens or images, and what is to be reached."""

    size: int
    steps: int
    learning_rate: float
    schemes: str
    fewer_than_float32: float
    fewer_than_bf16: float


LESSONS = {
    "gpt": Usual(256, 400, 0.5e-3, "int8,int4,powersgd:16+int8,powersgd:4+int8,topk:0.01+int8,sign", 20, 10),
    "digits": Usual(32, 200, 2e-3, "int8,int4,powersgd:8+int8,powersgd:4+int8,topk:0.01+int8,sign", 10, 5),
    "small": Usual(256, 200, 2e-3, "int4,powersgd:4+int8", 1, 1),
}
PLANNED, PLANNED_RANKS = "small", 4

Trained = Callable[[str, int], tuple[float, float]]
"""Of an exchange and a seed: the held-out loss at the end, and the bytes that one rank sent for gradients."""


@contextmanager
def _two_hosts(kept: Kept, lesson: str, rate: float, steps: int, auto_mbit: float) -> Iterator[Trained]:
    size = LESSONS[lesson].size
    with hosts(2) as pair, workers(SCRIPT, 2, pair) as ranks:

        def trained(exchange: str, seed: int) -> tuple[float, float]:
            mbit = auto_mbit if exchange == "own:auto" else 0.0
            key = ("bytes", lesson, exchange, rate, seed, size, steps, *([mbit] if mbit else []))
            found = kept.get(*key)
            if found is None:
                setting = asdict(Setting(exchange, BUCKET_MB, rate))
                stand = {"do": "stand", "name": "it", "setting": setting, "size": size, "seed": seed}
                for host in pair:
                    host.limit(mbit or None)
                ranks.ask({**stand, "lesson": lesson}, 600)
                before = pair[0].sent_bytes()
                counted = ranks.ask({"do": "block", "name": "it", "steps": steps, "size": size}, 3600)[0]
                sent = pair[0].sent_bytes() - before
                check_counted(exchange, counted["counted_bytes"], sent, steps)
                found = kept.put([ranks.ask({"do": "end", "name": "it"}, 600)[0]["loss"], sent], *key)
            return found[0], found[1]

        yield trained


@contextmanager
def _under_plan(kept: Kept, plan: str, rate: float, steps: int) -> Iterator[Trained]:
    size = LESSONS[PLANNED].size
    with workers(SCRIPT, PLANNED_RANKS) as ranks:

        def trained(exchange: str, seed: int) -> tuple[float, float]:
            key = ("planned", plan, exchange, rate, seed, size, steps)
            found = kept.get(*key)
            if found is None:
                setting = asdict(Setting(exchange, BUCKET_MB, rate))
                stand = {"do": "stand", "name": "it", "setting": setting, "size": size, "seed": seed}
                ranks.ask({**stand, "lesson": PLANNED, "plan": plan}, 600)
                counted = ranks.ask({"do": "block", "name": "it", "steps": steps, "size": size}, 3600)[0]
                end = ranks.ask({"do": "end", "name": "it"}, 600)[0]
                found = kept.put([end["loss"], counted["counted_bytes"]], *key)
            return found[0], found[1]

        yield trained


def main() -> int:
    """Measure and print a row for each scheme; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesson", choices=("gpt", "digits"), default="gpt")
    parser.add_argument("--plan", help="of four ranks and a small GPT, such as dp_replicate=2,pp=2")
    parser.add_argument("--schemes", help="ours, separated by commas")
    parser.add_argument("--auto-mbit", type=float, default=10.0, help="the link's rate while the scheme `auto` trains")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few steps and seeds; the figures mean nothing")
    options = parser.parse_args()
    lesson = PLANNED if options.plan else options.lesson
    usual = LESSONS[lesson]
    steps = options.steps or (20 if options.quick else usual.steps)
    rate = options.learning_rate or usual.learning_rate
    seeds = 2 if options.quick else options.seeds
    own = [f"own:{scheme}" for scheme in (options.schemes or usual.schemes).split(",")]
    kept = Kept(fresh=options.fresh)
    training = (
        _under_plan(kept, options.plan, rate, steps)
        if options.plan
        else _two_hosts(kept, lesson, rate, steps, options.auto_mbit)
    )
    print(f"{options.plan or lesson}: {steps} steps, {seeds} seeds, learning rate {rate:g}")
    print("exchange                   loss      sd  kept   MB sent  fewer than fp32  than bf16")
    bar = dense = 0.0
    with training as trained:
        for exchange in ("own:none", *own) if options.plan else ("ddp", *own, *HOOKS):
            runs = [trained(exchange, seed) for seed in range(seeds)]
            loss, spread = statistics.mean(run[0] for run in runs), statistics.stdev(run[0] for run in runs)
            sent = statistics.mean(run[1] for run in runs)
            if not dense:
                bar, dense = loss + spread, sent
            print(
                f"{exchange:<22} {loss:8.4f} {spread:7.4f}  {'yes' if loss <= bar else 'no':<4} {sent / 1e6:8.1f} "
                f"{dense / sent:14.1f} {dense / 2 / sent:10.1f}",
                flush=True,
            )
    if not options.plan:
        wanted = f"{usual.fewer_than_float32:g} times fewer than fp32, {usual.fewer_than_bf16:g} than bf16"
        print(f"wanted: kept with {wanted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
