"""After how many steps the schemes that `auto` chose follow a link whose rate changes while it trains.

Two ranks of the example GPT, each on a host of its own. Between two steps the link of both gets another rate,
and later its first one again. Of each change are printed the steps after it until the first scheme is another because
the link is, and until the last one is; all changes with their reasons, those among them that only follow better
estimates (Faster, LessLossy); and the median step in the last 20 at each rate, beside that of a training which began
at it.

    sudo OMP_NUM_THREADS=1 python benchmarks/link_change.py [--ways 1000,50,1000 0,100,0] [--rounds 3]

Wanted: at most 40 steps, both ways. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compression.contenders import Setting
from compression.timing import AUTO, SCRIPT
from links.checking import check
from links.namespaces import Host, hosts
from links.workers import Workers, workers

WANTED_STEPS = 40
# Tokens of a rank's step.
SIZES = {"gpt": 256, "small": 256}
# `auto` has come to rest, and its steps are worth a median.
_LAST = 20
_BLOCK_S = 3600.0


@dataclass(frozen=True, slots=True)
class Stay:
    """Steps at one rate of the link.

    Attributes:
        mbit: 0 is unlimited.
        first_step: made at it.
        changes: of schemes that were decided at it.
        step_s: median of the last steps, the slowest rank's.
        schemes: of the buckets at its end.
    """

    mbit: float
    first_step: int
    changes: list[dict[str, Any]]
    step_s: float
    schemes: list[str]

    def after(self, change: dict[str, Any]) -> int:
        """How many steps at this rate were made before the change held."""
        return change["from_step"] - self.first_step

    @property
    def followed(self) -> tuple[int, int] | None:
        """Steps at this rate before the first change for the link's sake and before the last one; None: no such."""
        after = [self.after(change) for change in self.changes if change["reason"].startswith("Link")]
        return (min(after), max(after)) if after else None


def stays(
    rates: Sequence[float], steps: Sequence[int], taken_s: Sequence[float], changes: list[dict[str, Any]]
) -> Iterator[Stay]:
    """One for each rate: what a training of as many steps at each of them took and decided."""
    begin, schemes = 1, dict[int, str]()
    for mbit, count in zip(rates, steps, strict=True):
        end = begin + count
        # What holds from the first step at a rate was decided at the end of the last step before.
        since = begin + (begin > 1)
        within = [change for change in changes if since <= change["from_step"] <= end]
        schemes |= {change["bucket"]: change["to_scheme"] for change in within}
        last = statistics.median(taken_s[max(begin, end - _LAST) - 1 : end - 1])
        # A bucket of which nothing was ever said is exchanged as it is.
        used = [schemes.get(bucket, "none") for bucket in range(max(schemes, default=-1) + 1)]
        yield Stay(mbit, begin, within, last, used)
        begin = end


def trained(
    ranks: Workers, pair: Sequence[Host], lesson: str, bucket_mb: float, rates: Sequence[float], steps: Sequence[int]
) -> list[Stay]:
    """Train with `auto`, so many steps at each rate."""
    setting = asdict(Setting(AUTO, bucket_mb, 1e-3))
    size = SIZES[lesson]
    taken_s: list[float] = []
    for number, (mbit, count) in enumerate(zip(rates, steps, strict=True)):
        for host in pair:
            host.limit(mbit or None)
        if not number:
            ranks.ask({"do": "stand", "name": "it", "setting": setting, "size": size, "lesson": lesson}, 600)
        answers = ranks.ask({"do": "block", "name": "it", "steps": count, "size": size}, _BLOCK_S)
        taken_s += [max(step) for step in zip(*(answer["seconds"] for answer in answers), strict=True)]
    changes = ranks.ask({"do": "decided", "name": "it"}, 60)[0]
    for host in pair:
        host.limit(None)
    ranks.ask({"do": "end", "name": "it"}, 600)
    return list(stays(rates, steps, taken_s, changes))


def show(found: Sequence[Stay], fresh: dict[float, Stay]) -> bool:
    """Print a training's changes of the link; whether all of them were followed in time."""
    good = True
    for before, stay in pairwise(found):
        beside = fresh[stay.mbit]
        print(f"  {_rate(before.mbit)} to {_rate(stay.mbit)}, after step {stay.first_step - 1}")
        if stay.followed is None:
            # That is right where the schemes of the one rate serve the other, too.
            said, good = "none changed for it", good and before.schemes == beside.schemes
        else:
            first, last = stay.followed
            said, good = f"first change after {first} steps, last after {last}", good and last <= WANTED_STEPS
        print(
            f"    {said}; then {stay.step_s * 1e3:.0f} ms a step with {_schemes(stay.schemes)} "
            f"(begun at this rate: {beside.step_s * 1e3:.0f} ms with {_schemes(beside.schemes)})"
        )
        told: dict[tuple[int, str, str], list[str]] = {}
        for change in stay.changes:
            key = (stay.after(change), change["reason"], change["why"])
            told.setdefault(key, []).append(f"{change['bucket']}: {change['from_scheme']} → {change['to_scheme']}")
        for (after, reason, why), buckets in told.items():
            print(f"    after {after:3d}: {reason}: {why}; {', '.join(buckets)}", flush=True)
    return good


def _rate(mbit: float) -> str:
    return f"{mbit:g} Mbit/s" if mbit else "unlimited"


def _schemes(schemes: Sequence[str]) -> str:
    return ", ".join(schemes) or "none"


def _way(text: str) -> list[float]:
    rates = [float(word) for word in text.split(",")]
    if len(rates) < 2:
        raise argparse.ArgumentTypeError(f"a way is two rates or more, such as 1000,50,1000, not {text!r}")
    return rates


def main() -> int:
    """Measure and print; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=_way, nargs="+", default=[[1000, 50, 1000], [0, 100, 0]], metavar="MBIT,...")
    parser.add_argument("--lesson", choices=tuple(SIZES), default="gpt")
    parser.add_argument("--bucket-mb", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=80, help="at each rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all changes there")
    parser.add_argument("--quick", action="store_true", help="one round of the first way on a small model")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.lesson, options.bucket_mb, options.ways = 1, "small", 0.25, options.ways[:1]
    # So that an ended run takes its hosts along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: list[dict[str, Any]] = []
    good = True
    with hosts(2) as pair:
        for mbit in sorted({mbit for way in options.ways for mbit in way if mbit}):
            print(check(pair, mbit), flush=True)
        with workers(SCRIPT, 2, pair) as ranks:
            for number in range(options.rounds):
                for way in options.ways:
                    # The first stay's later steps are at rest; a change falls 0 to 19 steps after a probe.
                    steps = [options.steps + 7 * number, *[options.steps + 3 * number] * (len(way) - 1)]
                    found = trained(ranks, pair, options.lesson, options.bucket_mb, way, steps)
                    fresh = {way[0]: found[0]}
                    for mbit in dict.fromkeys(way[1:]):
                        if mbit not in fresh:
                            begun = trained(ranks, pair, options.lesson, options.bucket_mb, [mbit], [_LAST * 2])
                            fresh[mbit] = begun[0]
                    print(f"round {number + 1}: {' to '.join(map(_rate, way))}")
                    good = show(found, fresh) and good
                    results.append({"way": way, "stays": [asdict(stay) for stay in found]})
    print(f"wanted: followed within {WANTED_STEPS} steps, both ways: {'reached' if good else 'NOT REACHED'}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
