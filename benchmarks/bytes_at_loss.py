"""How many bytes gradients cost at a loss no worse than that of plain training, after as many steps.

Two ranks train the example GPT (or a convolutional net on scikit-learn's digits), each between two hosts of its own,
so that bytes are what the interface sent: warm-up, scales, indices and all phases, headers too. A scheme keeps the loss
where its mean over the seeds is at most the dense mean plus one standard deviation of the dense runs. torch's own hooks
stand beside. Learning rate and all else are the same for all schemes. Optimizers whose momentum travels, replicas that
meet now and then, and plain SGD to hold them to, are asked for like schemes: "onebit:40", "dgc:0.01:0.05", "sync:10";
`compression.stepping.way_of` has all of them, and what each has of its own.

The first seed's training is over a link of --mbit, which is checked before ranks start, and all its steps together are
a scheme's time, warm-up and meetings included, beside it the mean of a step; `auto` has that link with every seed,
others none that is limited.

    sudo OMP_NUM_THREADS=1 python benchmarks/bytes_at_loss.py [--lesson digits] [--schemes powersgd:16+int8,int4]

Needs root and iproute2. With plans, four ranks of this machine train by each of them, a small GPT if no other lesson is
asked for, and bytes are those that rank 0 counts along dp_replicate. Each plan has a table of its own with
its own dense runs: plans differ in how many samples a step has.

    OMP_NUM_THREADS=1 python benchmarks/bytes_at_loss.py [--lesson gpt] --plan dp_replicate=2,tp=2 dp_replicate=2,pp=2

Results are kept in build/time_to_loss.json until the runtime's code is another, and it says of which commit they are;
--fresh forgets them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compression.contenders import Setting
from compression.kept import Kept
from compression.sources import of_timings
from compression.timing import SCRIPT, check_counted
from links.checking import check
from links.namespaces import Host, hosts
from links.workers import TaskFailed, Workers, workers

# One bucket: with more, torch's PowerSGD can match the wrong collectives on Gloo.
BUCKET_MB = 25.0
HOOKS = ("ddp:bf16", "ddp:powersgd:16")


@dataclass(frozen=True, slots=True)
class Usual:
    """What a lesson is trained with: `size` per rank and step in tokens or images, and what is to be reached.

    `mbit` is of the link over which steps are timed, where nothing else is asked; 0: it is not limited.
    """

    size: int
    steps: int
    learning_rate: float
    schemes: str
    fewer_than_float32: float
    fewer_than_bf16: float
    mbit: float


LESSONS = {
    "gpt": Usual(256, 400, 0.5e-3, "int8,int4,powersgd:16+int8,powersgd:4+int8,topk:0.01+int8,sign", 20, 10, 0),
    "digits": Usual(32, 200, 2e-3, "int8,int4,powersgd:8+int8,powersgd:4+int8,topk:0.01+int8,sign", 10, 5, 100),
    "small": Usual(256, 200, 2e-3, "int4,powersgd:4+int8", 1, 1, 0),
}
PLANNED_RANKS = 4


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to: the held-out loss at its end, the bytes that one rank sent, and its steps' seconds."""

    loss: float
    sent_bytes: float
    seconds: float


Train = Callable[[str, int], Trained]
"""With an exchange and a seed."""


class Refused(RuntimeError):
    """The lesson's model cannot be trained by the plan; the message says why."""


def _trained(kept: Kept, key: Sequence[object], ranks: Workers, task: Any, steps: int, source: Host | None) -> Trained:
    """Train once. Bytes are those of the interface of `source`, or else as rank 0 counts them. Raises `Refused`."""
    found = kept.get(*key)
    if found is None:
        stood = ranks.ask({**task, "do": "stand", "name": "it"}, 600)[0]
        if "refused" in stood:
            raise Refused(stood["refused"])
        before = source.sent_bytes() if source else 0
        answers = ranks.ask({"do": "block", "name": "it", "steps": steps, "size": task["size"]}, 3600)
        sent = counted = answers[0]["counted_bytes"]
        if source:
            sent = source.sent_bytes() - before
            check_counted(task["setting"]["exchange"], counted, sent, steps)
        seconds = sum(max(step) for step in zip(*(answer["seconds"] for answer in answers), strict=True))
        found = kept.put([ranks.ask({"do": "end", "name": "it"}, 600)[0]["loss"], sent, seconds], *key)
    return Trained(*found)


@contextlib.contextmanager
def _two_hosts(kept: Kept, lesson: str, rate: float, steps: int, mbit: float) -> Iterator[Train]:
    size = LESSONS[lesson].size
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(hosts(2))
        if mbit:
            print(check(pair, mbit), flush=True)
        ranks = stack.enter_context(workers(SCRIPT, 2, pair))

        def train(exchange: str, seed: int) -> Trained:
            limit = mbit if seed == 0 or exchange == "own:auto" else 0.0
            for host in pair:
                host.limit(limit or None)
            setting = asdict(Setting(exchange, BUCKET_MB, rate))
            task = {"setting": setting, "size": size, "seed": seed, "lesson": lesson}
            key = ("trained", of_timings(), lesson, exchange, rate, seed, size, steps, limit)
            return _trained(kept, key, ranks, task, steps, pair[0])

        yield train


@contextlib.contextmanager
def _under_plan(kept: Kept, lesson: str, plan: str, rate: float, steps: int) -> Iterator[Train]:
    size = LESSONS[lesson].size
    with workers(SCRIPT, PLANNED_RANKS) as ranks:

        def train(exchange: str, seed: int) -> Trained:
            setting = asdict(Setting(exchange, BUCKET_MB, rate))
            task = {"setting": setting, "size": size, "seed": seed, "lesson": lesson, "plan": plan}
            key = ("planned", of_timings(), lesson, plan, exchange, rate, seed, size, steps, PLANNED_RANKS)
            return _trained(kept, key, ranks, task, steps, None)

        yield train


def _kept(loss: float, bar: float) -> str:
    """Whether the loss is kept; one seed cannot say."""
    return "?" if math.isnan(bar) else "yes" if loss <= bar else "no"


def _compare(train: Train, exchanges: Sequence[str], seeds: int, steps: int) -> None:
    """Print a row for each exchange; all are held to the first."""
    print("exchange                   loss      sd  kept   MB sent  fewer than fp32  than bf16  seconds  ms a step")
    bar = dense = 0.0
    for exchange in exchanges:
        try:
            runs = [train(exchange, seed) for seed in range(seeds)]
        except Refused as error:
            print(f"refused: {error}", flush=True)
            return
        except TaskFailed as error:
            if "NonFiniteError" not in str(error):
                raise
            print(f"{exchange:<22} comes apart: {str(error).partition(';')[0]}", flush=True)
            continue
        loss = statistics.mean(run.loss for run in runs)
        spread = statistics.stdev(run.loss for run in runs) if len(runs) > 1 else math.nan
        sent = statistics.mean(run.sent_bytes for run in runs)
        if not dense:
            bar, dense = loss + spread, sent
        print(
            f"{exchange:<22} {loss:8.4f} {spread:7.4f}  {_kept(loss, bar):<4} {sent / 1e6:8.1f} "
            f"{dense / sent:14.1f} {dense / 2 / sent:10.1f} {runs[0].seconds:8.1f} "
            f"{1e3 * runs[0].seconds / steps:10.1f}",
            flush=True,
        )


def main() -> int:
    """Measure and print a row for each scheme; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesson", choices=tuple(LESSONS), help="gpt; small where plans are given")
    parser.add_argument("--plan", nargs="+", default=[], help="plans of four ranks, such as dp_replicate=2,pp=2")
    parser.add_argument("--schemes", help="ours, separated by commas")
    parser.add_argument("--mbit", type=float, help="rate of the link where that is limited; 0: never")
    parser.add_argument("--seeds", type=int, default=5, help="1: for the time of steps alone")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few steps and seeds; the figures mean nothing")
    options = parser.parse_args()
    # So that hosts and ranks are ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lesson: str = options.lesson or ("small" if options.plan else "gpt")
    usual = LESSONS[lesson]
    steps = options.steps or (20 if options.quick else usual.steps)
    rate = options.learning_rate or usual.learning_rate
    seeds = 2 if options.quick else options.seeds
    mbit = usual.mbit if options.mbit is None else options.mbit
    own = [f"own:{scheme}" for scheme in (options.schemes or usual.schemes).split(",")]
    kept = Kept(fresh=options.fresh)
    for plan in options.plan:
        print(f"{lesson} under {plan}: {steps} steps, {seeds} seeds, learning rate {rate:g}")
        with _under_plan(kept, lesson, plan, rate, steps) as train:
            _compare(train, ("own:none", *own), seeds, steps)
    if not options.plan:
        link = f", the first over {mbit:g} Mbit/s" if mbit else ""
        print(f"{lesson}: {steps} steps, {seeds} seeds{link}, learning rate {rate:g}")
        with _two_hosts(kept, lesson, rate, steps, mbit) as train:
            _compare(train, ("ddp", *own, *HOOKS), seeds, steps)
        wanted = f"{usual.fewer_than_float32:g} times fewer than fp32, {usual.fewer_than_bf16:g} than bf16"
        print(f"wanted: kept with {wanted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
