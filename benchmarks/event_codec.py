"""Public events into protobuf and back; at least 100,000 small ones a second each way.

Pure computation, so it is measured in CPU time of this process; the spread is over repetitions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from distroml.api.rendezvous.v1 import rendezvous_pb2
from distroml.rpc.publicevents import PublicCodec

GOAL_PER_S = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecorded:
    """Nine plain fields."""

    at_ms: int
    generation: int
    step: int
    sample_from: int
    sample_to: int
    epoch: int
    loss: float
    fingerprint: str
    why: str


CODEC = PublicCodec[StepRecorded]({"rendezvous.step.StepRecorded": (StepRecorded, rendezvous_pb2.StepRecorded, 1)})
EVENT = StepRecorded(
    at_ms=1_790_000_000_000,
    generation=3,
    step=120,
    sample_from=3840,
    sample_to=3872,
    epoch=0,
    loss=1.618,
    fingerprint="9f2c" * 4,
    why="checkpoint",
)


def rates(work: Callable[[], object], count: int, repetitions: int) -> list[float]:
    """Calls per CPU second, sorted."""
    found: list[float] = []
    for _ in range(repetitions):
        started = time.process_time()
        for _ in range(count):
            work()
        found.append(count / (time.process_time() - started))
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a second instead of ten")
    options = parser.parse_args()
    count = 10_000 if options.quick else 100_000
    stored = CODEC.encode(EVENT, id="evt-1")
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: CODEC.encode(EVENT, id="evt-1"),
        "decode": lambda: CODEC.decode(stored.type, stored.schema, stored.data),
    }
    reached = True
    for name, work in works.items():
        found = rates(work, count, 9)
        middle = found[len(found) // 2]
        reached &= middle >= GOAL_PER_S
        print(f"{name}: {middle:,.0f}/s (of {found[0]:,.0f} to {found[-1]:,.0f}; goal {GOAL_PER_S:,}/s)")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
