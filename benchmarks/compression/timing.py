"""What contenders' steps take and send over a link of a set rate, all in turn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compression.contenders import Setting
from links.checking import check
from links.namespaces import Host, hosts
from links.workers import TaskFailed, Workers, workers

SCRIPT = Path(__file__).with_name("rank.py")
AUTO = "own:auto"
# In these `auto` has measured the link and come to rest; what they take beyond as many usual steps is its start.
_STARTING_STEPS = 40
# A few steps at full speed; whoever takes longer waits for a collective that the other rank will never make.
_FEW_STEPS_S = 30.0
# Beside gradients, of each step, and headers and answers of each bucket's messages.
_BESIDE_BYTES, _BUCKET_BYTES = 16 * 1024, 3 * 1024
# Headers and answers to packets; seen were 13 % where nothing limits the link and a block has few steps.
_MOST_BESIDE = 1.15
# What is spent on a first look at each contender's bucket sizes, where its steps are short and scatter. Among those so
# near to its best one, blocks in turn decide.
_ROUGH_STEPS, _ROUGH_S, _NEAR = 12, 2.5, 1.1
# As one bucket, the model is not larger.
_MODEL_MB = 25.0
# What the limiter of a slow link may still hold of the steps before.
_QUEUED_BYTES = 128 * 1024


@dataclass
class Timed:
    """Of each contender at one rate, at its best bucket size.

    Attributes:
        step_s: median, the slowest rank's.
        spread: largest over smallest median of a block.
        sent_bytes: of a step, by rank 0's interface, headers and all.
        alone_s: a step without any exchange.
        cable: what the link was checked to do.
        start_s: what `auto` took to choose, and its first steps beyond as many usual ones.
        changes: what `auto` decided.
    """

    step_s: dict[str, float]
    spread: dict[str, float]
    sent_bytes: dict[str, float]
    bucket_mb: dict[str, float]
    alone_s: float
    cable: str
    start_s: float = 0.0
    changes: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())


class MisCounted(RuntimeError):
    """A rank's own count of its bytes is not what the interface says."""


def check_counted(name: str, counted: int | None, sent: int, steps: int, buckets: int = 1) -> None:
    """Hold what a rank says that it sent for gradients to what its interface sent; None: it does not say.

    The interface sees more: headers, the answers to what came in, and a few numbers that ranks tell one another in each
    step. A little may still wait before it when it is read.

    Raises:
        MisCounted: fewer bytes left the host than were counted, or far more.
    """
    beside = (_BESIDE_BYTES + _BUCKET_BYTES * buckets) * steps + _QUEUED_BYTES
    if counted is not None and not 0.95 * counted <= sent <= _MOST_BESIDE * counted + beside:
        raise MisCounted(
            f"{name} counted {counted} bytes in {steps} steps, and {sent} left the host: see what comm.wire leaves out"
        )


class _Link:
    """Standing contenders at both ends of a cable."""

    def __init__(self, ranks: Workers, source: Host, tokens: int) -> None:
        self._ranks, self._source, self._tokens = ranks, source, tokens

    def stand(self, one: Setting) -> float:
        """Make one ready; the seconds that its making took."""
        task = {"do": "stand", "name": _name(one), "setting": asdict(one), "size": self._tokens}
        answers = self._ranks.ask(task, 600)
        return max(answer["seconds"] for answer in answers)

    def block(self, one: Setting, steps: int, timeout_s: float = 3600) -> tuple[list[float], float]:
        """Seconds of each step, the slowest rank's, and bytes per step."""
        before = self._source.sent_bytes()
        task = {"do": "block", "name": _name(one), "steps": steps, "size": self._tokens}
        answers = self._ranks.ask(task, timeout_s)
        sent = self._source.sent_bytes() - before
        check_counted(_name(one), answers[0]["counted_bytes"], sent, steps, math.ceil(_MODEL_MB / one.bucket_mb))
        sent /= steps
        return [max(step) for step in zip(*(answer["seconds"] for answer in answers), strict=True)], sent

    def alone(self) -> float:
        """A step without exchange, both ranks at once."""
        answers = self._ranks.ask({"do": "compute", "steps": 20, "size": self._tokens}, 600)
        return statistics.median([max(step) for step in zip(*(a["seconds"] for a in answers), strict=True)][2:])

    def decided(self, one: Setting) -> list[dict[str, Any]]:
        return self._ranks.ask({"do": "decided", "name": _name(one)}, 60)[0]


def timed(
    mbit: float,
    settings: Sequence[Setting],
    tokens: int,
    blocks: int,
    block_steps: int,
    broken_one: Callable[[Setting], object],
) -> Timed:
    """Time all of them at one rate; 0 is unlimited. One that breaks the process group is left out, and told.

    Raises:
        CableOff: the link does not do what was set.
    """
    left = list(settings)
    while True:
        with hosts(2) as pair:
            cable = str(check(pair, mbit)) if mbit else "unlimited"
            for host in pair:
                host.limit(None)
            with workers(SCRIPT, 2, pair) as ranks:
                link = _Link(ranks, pair[0], tokens)
                broken = _stand_all(link, [one for one in left if one.exchange != AUTO], mbit)
                if broken is None:
                    for host in pair:
                        host.limit(mbit or None)
                    return _measure(link, left, cable, blocks, block_steps)
        broken_one(broken)
        left = [one for one in left if one != broken]


def _stand_all(link: _Link, settings: Sequence[Setting], mbit: float) -> Setting | None:
    """Make all ready at full speed, past their dense first steps; the one that failed.

    Torch's PowerSGD comes first: its buckets may match the wrong collectives, and all begin anew without it.
    """
    for one in sorted(settings, key=lambda one: "powersgd" not in one.exchange):
        try:
            link.stand(one)
            link.block(one, one.dense_steps + 2, _FEW_STEPS_S)
        except TaskFailed as error:
            print(f"  {_name(one)} at {mbit:g} Mbit/s: left out: {error}", flush=True)
            return one
    return None


def _measure(link: _Link, settings: Sequence[Setting], cable: str, blocks: int, block_steps: int) -> Timed:
    alone_s = link.alone()
    # Of `auto` by its setting: what it took to choose, and its first steps.
    started = {one: (link.stand(one), link.block(one, _STARTING_STEPS)[0]) for one in settings if one.exchange == AUTO}
    near = _near({one: _rough(link, one) for one in settings})
    seconds: dict[Setting, list[list[float]]] = {one: [] for one in near}
    sent: dict[Setting, list[float]] = {one: [] for one in near}
    for _ in range(blocks):
        for one in near:
            steps, bytes_each = link.block(one, block_steps)
            seconds[one].append(steps)
            sent[one].append(bytes_each)
    middle = {one: statistics.median([s for block in all_ for s in block]) for one, all_ in seconds.items()}
    best: dict[str, Setting] = {}
    for one in sorted(near, key=lambda one: middle[one]):
        best.setdefault(one.exchange, one)
    step_s = {name: middle[one] for name, one in best.items()}
    middles = {name: [statistics.median(block) for block in seconds[one]] for name, one in best.items()}
    found = Timed(
        step_s=step_s,
        spread={name: max(each) / min(each) for name, each in middles.items()},
        sent_bytes={name: statistics.median(sent[one]) for name, one in best.items()},
        bucket_mb={name: one.bucket_mb for name, one in best.items()},
        alone_s=alone_s,
        cable=cable,
    )
    if AUTO in best:
        choosing_s, starting = started[best[AUTO]]
        found.start_s = choosing_s + max(0.0, sum(starting) - len(starting) * step_s[AUTO])
        found.changes = link.decided(best[AUTO])
    return found


def _near(rough: Mapping[Setting, float]) -> list[Setting]:
    """Of each contender the bucket sizes that may be its best one."""
    least: dict[str, float] = {}
    for one, seconds in rough.items():
        least[one.exchange] = min(seconds, least.get(one.exchange, seconds))
    return [one for one, seconds in rough.items() if seconds <= _NEAR * least[one.exchange]]


def _rough(link: _Link, one: Setting) -> float:
    """About what a step takes, well enough to tell bucket sizes apart."""
    # The first step after the rate was set meets queues that full speed has left.
    step_s = min(link.block(one, 2)[0])
    more = min(_ROUGH_STEPS, int(_ROUGH_S / step_s))
    return statistics.median(link.block(one, more)[0]) if more > 1 else step_s


def _name(one: Setting) -> str:
    return f"{one.exchange} {one.bucket_mb:g} MB"
