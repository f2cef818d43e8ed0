"""How long training takes to a loss over a slow link: our compression against torch DDP with its own hooks.

Two ranks of the example GPT, one thread each, 256 tokens per rank and step. Each contender's steps to the loss that
plain DDP has after 400 steps (mean of three seeds; each with the learning rate that is best for its first seed) are
counted at full speed, where they cost little; its steps are timed over the link, all contenders in turn, each with the
bucket size that is fastest there. Time to loss is the one times the other, plus what first steps take beyond that.
`auto` counts its steps with the changes of schemes that it decided while it was timed at that rate. A step without any
exchange is printed beside as the limit.

Needs root and iproute2. Results are kept in build/time_to_loss.json, so that what was measured is not measured again:
what links take until the runtime's code is another, steps to a loss until that of schemes is. Of what is kept it says
the commit; --fresh forgets it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compression.contenders import Setting
from compression.curves import Arrival, Asked, Curves
from compression.kept import Kept
from compression.sources import of_timings
from compression.timing import AUTO, SCRIPT, Timed, timed
from links.workers import workers

RATES = (10.0, 50.0, 100.0, 200.0, 1000.0, 0.0)
LEARNING_RATES = (0.5e-3, 1e-3, 2e-3)
HOOKS = ("ddp", "ddp:fp16", "ddp:bf16", "ddp:powersgd:1", "ddp:powersgd:4", "ddp:powersgd:16")
BUCKETS_MB = (1.0, 4.0, 25.0)
# A step takes as long with one learning rate as with another.
_ANY_RATE = 1e-3


def _settings(hooks: Sequence[str], own: Sequence[str]) -> list[Setting]:
    exchanges = ("ddp", *hooks, *(f"own:{spec}" for spec in own))
    return [Setting(exchange, bucket, _ANY_RATE) for exchange in exchanges for bucket in BUCKETS_MB]


def _timed(kept: Kept, mbit: float, options: argparse.Namespace) -> Timed:
    code = of_timings()
    key = ("timed", code, mbit, options.tokens, options.blocks, options.block_steps, *options.hooks, *options.own)
    found = kept.get(*key)
    if found is None:
        settings = [one for one in _settings(options.hooks, options.own) if not kept.get("broken", code, one)]
        measured = timed(
            mbit,
            settings,
            options.tokens,
            options.blocks,
            options.block_steps,
            lambda one: kept.put(True, "broken", code, one),
        )
        found = kept.put(asdict(measured), *key)
    return Timed(**found)


def _seconds(exchange: str, arrival: Arrival, at: Timed) -> float:
    """To the loss, with what comes before the first usual step."""
    step_s = at.step_s[exchange]
    start_s = at.start_s if exchange == AUTO else 0.0
    dense = Setting(exchange, 0.0, 0.0).dense_steps
    return arrival.steps * step_s + start_s + dense * (at.step_s["ddp"] - step_s)


def _show(mbit: float, arrivals: Mapping[str, Arrival | None], at: Timed) -> dict[str, float]:
    table = {
        exchange: _seconds(exchange, arrival, at)
        for exchange, arrival in arrivals.items()
        if arrival is not None and exchange in at.step_s
    }
    best = min(seconds for exchange, seconds in table.items() if not exchange.startswith("own:"))
    print(f"\n{at.cable if mbit else 'unlimited'}; a step without exchange takes {at.alone_s * 1e3:.0f} ms")
    print("exchange                steps     lr bucket  step ms spread  KB/step  to loss s  best peer/  plain/")
    for exchange, seconds in sorted(table.items(), key=lambda item: item[1]):
        arrival = arrivals[exchange]
        assert arrival is not None
        print(
            f"{exchange:<22} {arrival.steps:6.0f} {arrival.learning_rate:6g} {at.bucket_mb[exchange]:6g} "
            f"{at.step_s[exchange] * 1e3:8.1f} {at.spread[exchange]:6.2f} {at.sent_bytes[exchange] / 1e3:8.1f} "
            f"{seconds:10.1f} {best / seconds:11.2f} {table['ddp'] / seconds:7.1f}",
            flush=True,
        )
    for exchange in sorted(set(at.step_s) - set(table)):
        print(f"{exchange:<22} does not get there")
    return table


def main() -> int:
    """Measure and print a table for each rate; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, nargs="+", default=list(RATES), help="rates of the link; 0: unlimited")
    parser.add_argument("--own", nargs="+", default=["auto", "int8", "int4", "powersgd:4+int8"], help="our schemes")
    parser.add_argument("--hooks", nargs="+", default=list(HOOKS[1:]), help="torch's, beside plain DDP")
    parser.add_argument("--tokens", type=int, default=256, help="per rank and step")
    parser.add_argument("--steps", type=int, default=400, help="of plain DDP, whose loss is the goal")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--block-steps", type=int, default=4, help="more where a step is short and its time scatters")
    parser.add_argument(
        "--goal", type=float, nargs=2, metavar=("LOSS", "RATE"), help="instead of what plain DDP reaches"
    )
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--curves", action="store_true", help="count steps to the loss only; time nothing")
    parser.add_argument("--links", action="store_true", help="time steps over the links only; count none to a loss")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps, one rate; rough figures")
    options = parser.parse_args()
    # So that hosts and ranks are ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.quick:
        options.mbit, options.steps, options.seeds, options.blocks, options.every = [100.0], 40, 1, 2, 10
        options.own = options.own[:2]
    kept = Kept(fresh=options.fresh)
    times = {mbit: _timed(kept, mbit, options) for mbit in ([] if options.curves else options.mbit)}
    if options.links:
        for mbit, at in times.items():
            print(f"{mbit:g} Mbit/s: {json.dumps(asdict(at))}")
        return 0
    asked = Asked(options.tokens, options.steps, options.seeds, options.learning_rates, options.every)
    curves = Curves(kept, asked)
    results: dict[str, Any] = {"rates": {}}
    with workers(SCRIPT, 2) as ranks:
        goal, rate = options.goal or curves.goal(ranks)
        print(f"goal: held-out loss {goal:.4f} (learning rate {rate:g})", flush=True)
        fixed = ["ddp", *options.hooks, *(f"own:{spec}" for spec in options.own if f"own:{spec}" != AUTO)]
        arrivals = {exchange: curves.arrival(ranks, exchange, goal, rate) for exchange in fixed}
        for mbit, at in times.items():
            chosen = dict(arrivals)
            if AUTO in at.step_s:
                bucket_mb = at.bucket_mb[AUTO]
                chosen[AUTO] = curves.arrival(ranks, AUTO, goal, rate, bucket_mb=bucket_mb, changes=at.changes)
            table = _show(mbit, chosen, at)
            results["rates"][f"{mbit:g}"] = {
                **asdict(at),
                "arrivals": {name: asdict(one) for name, one in chosen.items() if one is not None},
                "seconds": table,
            }
    results["goal"] = goal
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
