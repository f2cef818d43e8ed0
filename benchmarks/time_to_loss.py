"""How long training takes to a loss over a slow link: our compression against torch DDP with its own hooks.

Two ranks of the example GPT, one thread each, 256 tokens per rank and step. Each contender's steps to the loss that
plain DDP has after 400 steps (mean of three seeds; of the learning rates, the one best for the first seed) are counted
at full speed, where they cost little; its steps are timed over the link, all contenders in turn. Time to loss is the one times the other, dense first
steps at their own cost. A step without any exchange is printed beside as the limit.

Needs root and iproute2. Results are kept in build/time_to_loss.json, so that what was measured is not measured again;
--fresh forgets them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compression.contenders import Setting
from links.namespaces import hosts
from links.workers import TaskFailed, Workers, workers

SCRIPT = Path(__file__).parent / "compression" / "rank.py"
KEPT = Path(__file__).parents[1] / "build" / "time_to_loss.json"
RATES = (10.0, 50.0, 100.0, 200.0, 1000.0)
LEARNING_RATES = (0.5e-3, 1e-3, 2e-3)
HOOKS = ("ddp", "ddp:fp16", "ddp:bf16", "ddp:powersgd:1", "ddp:powersgd:4", "ddp:powersgd:16")
BUCKETS_MB = (1.0, 4.0, 25.0)
OWN_BUCKET_MB = 4.0
# Losses do not depend on buckets. One holds all: with more, torch's PowerSGD can match the wrong collectives on Gloo.
_CURVE_BUCKET_MB = 25.0
# Nobody needs this many times the dense run's steps and still wins.
_MOST_STEPS = 4.0


class Kept:
    """What was measured, by a key that names it."""

    def __init__(self, fresh: bool) -> None:
        self._found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() and not fresh else {}

    def get(self, *key: object) -> Any:
        return self._found.get(" ".join(map(str, key)))

    def put(self, value: Any, *key: object) -> Any:
        self._found[" ".join(map(str, key))] = value
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(self._found, indent=1) + "\n")
        return value


class Curves:
    """Steps to a loss, at full speed."""

    def __init__(self, kept: Kept, options: argparse.Namespace) -> None:
        self._kept, self._options = kept, options

    def losses(self, ranks: Workers, setting: Setting, seed: int, steps: int, goal: float) -> list[float]:
        """Held-out losses after each `--every` steps."""
        options = self._options
        key = (
            "curve",
            setting.exchange,
            setting.learning_rate,
            seed,
            options.tokens,
            options.every,
            steps,
            round(goal, 5),
        )
        found = self._kept.get(*key)
        if found is None:
            task = {"do": "learn", "setting": asdict(setting), "seed": seed, "tokens": options.tokens, "goal": goal}
            answers = ranks.ask({**task, "steps": steps, "every": options.every}, 3600)
            found = self._kept.put(answers[0]["losses"], *key)
        return found

    def goal(self, ranks: Workers) -> tuple[float, float]:
        """The loss of plain DDP after `--steps`, mean over seeds, and its learning rate: the first seed's best."""
        steps = self._options.steps

        def end(rate: float, seed: int) -> float:
            loss = self.losses(ranks, Setting("ddp", _CURVE_BUCKET_MB, rate), seed, steps, 0.0)[-1]
            print(f"  plain DDP, learning rate {rate:g}, seed {seed}: {loss:.4f} after {steps} steps", flush=True)
            return loss

        first = {rate: end(rate, 0) for rate in self._options.learning_rates}
        best = min(first, key=lambda rate: first[rate])
        return statistics.mean([first[best], *(end(best, seed) for seed in range(1, self._options.seeds))]), best

    def steps_to(self, ranks: Workers, exchange: str, goal: float, usual: float) -> tuple[float, float] | None:
        """Fewest steps to `goal`, mean over seeds, and the learning rate, the first seed's best; None: none gets there.

        `usual` is tried first: another rate must get there in fewer steps, and is not tried for longer.
        """
        most = int(_MOST_STEPS * self._options.steps)

        def count(rate: float, seed: int, most: int) -> float | None:
            setting = Setting(exchange, _CURVE_BUCKET_MB, rate)
            reached = _reached(self.losses(ranks, setting, seed, most, goal), goal, self._options.every)
            shown = f"{reached:.0f} steps" if reached is not None else f"not within {most} steps"
            print(f"  {exchange}, learning rate {rate:g}, seed {seed}: {shown}", flush=True)
            return reached

        best: tuple[float, float] | None = None
        for rate in sorted(self._options.learning_rates, key=lambda rate: rate != usual):
            every = self._options.every
            reached = count(rate, 0, most if best is None else math.ceil(best[0] / every) * every)
            if reached is not None:
                best = min(best or (reached, rate), (reached, rate))
        if best is None:
            return None
        counts = [best[0], *(count(best[1], seed, most) for seed in range(1, self._options.seeds))]
        arrived = [reached for reached in counts if reached is not None]
        return (statistics.mean(arrived), best[1]) if len(arrived) == len(counts) else None


def _reached(losses: Sequence[float], goal: float, every: int) -> float | None:
    """After how many steps `goal` is reached, by a straight line between evaluations."""
    before: float | None = None
    for number, value in enumerate(losses):
        if value <= goal:
            part = 1.0 if before is None else (before - goal) / (before - value)
            return every * (number + part)
        before = value
    return None


def _name(setting: Setting) -> str:
    return f"{setting.exchange} {setting.bucket_mb:g} MB"


def _blocks(ranks: Workers, names: Sequence[str], count: int, steps: int, tokens: int) -> dict[str, list[float]]:
    """Seconds of each step, the slowest rank's, in blocks that take turns; each contender goes on where it was."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        for name in names:
            task = {"do": "block", "name": name, "steps": steps, "tokens": tokens}
            answers = ranks.ask(task, 3600)
            times[name] += [max(step) for step in zip(*(answer["seconds"] for answer in answers), strict=True)]
    return times


def _timed(mbit: float, settings: Sequence[Setting], options: argparse.Namespace) -> dict[str, float]:
    """Median step of each contender at one rate. One that breaks the process group is left out, and said."""
    left = list(settings)
    while True:
        with hosts(2) as pair:
            for host in pair:
                host.limit(mbit or None)
            with workers(SCRIPT, 2, pair) as ranks:
                now = ""
                try:
                    for one in left:
                        now = _name(one)
                        ranks.ask({"do": "stand", "name": now, "setting": asdict(one)}, 600)
                        # Dense first steps and what is set up once are not what a step costs.
                        _blocks(ranks, [now], 1, one.dense_steps + 2, options.tokens)
                except TaskFailed as error:
                    print(f"  {now} at {mbit:g} Mbit/s: left out: {error}", flush=True)
                    left = [one for one in left if _name(one) != now]
                    continue
                rough = {one: _blocks(ranks, [_name(one)], 1, 2, options.tokens)[_name(one)] for one in left}
                best: dict[str, Setting] = {}
                for one in sorted(left, key=lambda one: min(rough[one])):
                    best.setdefault(one.exchange, one)
                names = [_name(one) for one in best.values()]
                found = _blocks(ranks, names, options.blocks, options.block_steps, options.tokens)
                limit = ranks.ask({"do": "compute", "steps": 20, "tokens": options.tokens}, 600)
                alone = [max(step) for step in zip(*(answer["seconds"] for answer in limit), strict=True)]
        medians = {one.exchange: statistics.median(found[_name(one)]) for one in best.values()}
        return {**medians, "alone": statistics.median(alone[2:])}


def _settings(own: Sequence[str]) -> list[Setting]:
    hooked = [Setting(hook, bucket, 1e-3) for hook in HOOKS for bucket in BUCKETS_MB]
    return [*hooked, *(Setting(f"own:{spec}", OWN_BUCKET_MB, 1e-3) for spec in own)]


def _seconds(steps: float, step_s: float, dense_s: float, dense_steps: int) -> float:
    return steps * step_s + dense_steps * (dense_s - step_s)


def main() -> int:
    """Measure and print a table for each rate; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, nargs="+", default=[*RATES, 0.0], help="rates of the link; 0: unlimited")
    parser.add_argument("--own", nargs="+", default=["none", "int8", "int4", "powersgd:4"], help="our schemes")
    parser.add_argument("--tokens", type=int, default=256, help="per rank and step")
    parser.add_argument("--steps", type=int, default=400, help="of plain DDP, whose loss is the goal")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--block-steps", type=int, default=4)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--curves", action="store_true", help="count steps to the loss only; time nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps, one rate; rough figures")
    options = parser.parse_args()
    if options.quick:
        options.mbit, options.steps, options.seeds, options.blocks, options.every = [100.0], 40, 1, 2, 10
        options.own = options.own[:2]
    kept = Kept(options.fresh)
    curves = Curves(kept, options)
    with workers(SCRIPT, 2) as ranks:
        goal, rate = curves.goal(ranks)
        print(f"goal: held-out loss {goal:.4f} (learning rate {rate:g})", flush=True)
        exchanges = [*HOOKS, *(f"own:{spec}" for spec in options.own)]
        steps = {exchange: curves.steps_to(ranks, exchange, goal, rate) for exchange in exchanges}
    results: dict[str, Any] = {"goal": goal, "steps": steps, "rates": {}}
    for mbit in [] if options.curves else options.mbit:
        key = ("steps", mbit, options.tokens, options.blocks, *options.own)
        step_s = kept.get(*key) or kept.put(_timed(mbit, _settings(options.own), options), *key)
        table: dict[str, float] = {}
        for exchange in exchanges:
            reached = steps[exchange]
            if exchange in step_s and reached is not None:
                dense = Setting(exchange, 0.0, 0.0).dense_steps
                table[exchange] = _seconds(reached[0], step_s[exchange], step_s["ddp"], dense)
        results["rates"][f"{mbit:g}"] = {"step_s": step_s, "seconds": table}
        peers = {name: seconds for name, seconds in table.items() if not name.startswith("own:")}
        best = min(peers.values())
        print(
            f"\n{f'{mbit:g} Mbit/s' if mbit else 'unlimited'}; a step without exchange {step_s['alone'] * 1e3:.0f} ms"
        )
        print(
            f"{'exchange':<18} {'steps':>7} {'rate':>7} {'step ms':>9} {'to loss s':>10} {'best peer':>10} {'plain':>7}"
        )
        for exchange, seconds in sorted(table.items(), key=lambda item: item[1]):
            count, learning_rate = steps[exchange] or (0.0, 0.0)
            print(
                f"{exchange:<18} {count:7.0f} {learning_rate:7g} {step_s[exchange] * 1e3:9.1f} {seconds:10.1f} "
                f"{best / seconds:9.2f}x {table.get('ddp', float('nan')) / seconds:6.1f}x"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
