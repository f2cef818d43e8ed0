"""When each pass of a pipeline runs in one step: the schedule's own order, simulated from the seconds of each pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from distroml.planner.cost.passes import WEIGHT_SHARE, order
from distroml.planner.plan import Schedule

PassKind = Literal["forward", "backward", "weight"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One microbatch through one stage. "backward" leaves the weights' gradients to "weight" in a zero-bubble order."""

    kind: PassKind
    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A pass and when it runs, in seconds since the step began; `rank` is the pp coordinate."""

    rank: int
    work: Pass
    start_s: float
    end_s: float


def orders(schedule: Schedule, pp: int, chunks: int, microbatches: int) -> tuple[tuple[Pass, ...], ...]:
    """Each pp coordinate's passes in the order in which it runs them; stage `i` lies on coordinate `i % pp`.

    Raises:
        ValueError: the schedule knows no such order: one microbatch at least, and more than one stage per rank only
            where the schedule takes turns among them.
    """
    if microbatches < 1 or pp < 1 or chunks < 1:
        raise ValueError(f"pp={pp}, chunks={chunks} and microbatches={microbatches} must be 1 or more")
    if chunks > 1 and schedule in ("gpipe", "1f1b"):
        raise ValueError(f"schedule={schedule} has one stage per rank, not {chunks}")
    kinds: tuple[PassKind, ...] = get_args(PassKind)
    return tuple(
        tuple(
            Pass(kinds[kind], stage, microbatch)
            for kind, stage, microbatch in order(schedule, rank, pp, chunks, microbatches)
        )
        for rank in range(pp)
    )


def timeline(
    schedule: Schedule,
    pp: int,
    microbatches: int,
    *,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float] | None = None,
    send_s: float = 0.0,
) -> tuple[Interval, ...]:
    """When each pass runs, in order of rank and time. A pass starts when its rank is free and its input is there.

    Args:
        schedule: the order of passes.
        pp: ranks of the pipeline; `forward_s` has `pp` times a whole number of stages.
        microbatches: how many run in the step.
        forward_s: seconds of one microbatch's forward pass, by stage.
        backward_s: seconds of its whole backward pass, by stage.
        weight_s: what of each `backward_s` the gradients of weights take, `WEIGHT_SHARE` where it is not said.
        send_s: seconds until what one stage computed is on the next one, where that lies on another rank.

    Raises:
        ValueError: stages that cannot be dealt out to `pp` ranks, or as `orders`.
    """
    stages = len(forward_s)
    if not stages or stages % pp or len(backward_s) != stages:
        raise ValueError(f"{stages} forward and {len(backward_s)} backward times cannot be dealt out to pp={pp} ranks")
    queues = orders(schedule, pp, stages // pp, microbatches)
    late_s = [second * WEIGHT_SHARE for second in backward_s] if weight_s is None else weight_s
    if len(late_s) != stages:
        raise ValueError(f"{len(late_s)} seconds of weight passes for {stages} stages")
    split = schedule == "zero_bubble"
    seconds: dict[PassKind, Sequence[float]] = {
        "forward": forward_s,
        "backward": [a - b for a, b in zip(backward_s, late_s, strict=True)] if split else backward_s,
        "weight": late_s,
    }
    hop = send_s if pp > 1 else 0.0
    ended: dict[Pass, float] = {}
    free = [0.0] * pp
    at = [0] * pp
    found: list[list[Interval]] = [[] for _ in range(pp)]
    moved = True
    while moved:
        moved = False
        for rank, queue in enumerate(queues):
            while at[rank] < len(queue) and (ready := _ready(queue[at[rank]], stages, ended, hop)) is not None:
                work = queue[at[rank]]
                start = max(free[rank], ready)
                end = start + seconds[work.kind][work.stage]
                ended[work] = free[rank] = end
                found[rank].append(Interval(rank, work, start, end))
                at[rank] += 1
                moved = True
    if any(place < len(queue) for place, queue in zip(at, queues, strict=True)):
        raise ValueError(f"{schedule} with pp={pp} and {microbatches} microbatches waits for itself")
    return tuple(interval for rank in found for interval in rank)


def _ready(work: Pass, stages: int, ended: dict[Pass, float], hop_s: float) -> float | None:
    """When the input of `work` is there; None where that is not known yet."""
    stage, microbatch = work.stage, work.microbatch
    match work.kind:
        case "forward":
            if stage == 0:
                return 0.0
            before, hop = Pass("forward", stage - 1, microbatch), hop_s
        case "backward" if stage < stages - 1:
            before, hop = Pass("backward", stage + 1, microbatch), hop_s
        case "backward":
            before, hop = Pass("forward", stage, microbatch), 0.0
        case "weight":
            before, hop = Pass("backward", stage, microbatch), 0.0
    end = ended.get(before)
    return None if end is None else end + hop


def bubble(intervals: Sequence[Interval]) -> float:
    """The share of all ranks' time between the step's first and last pass in which a rank waits, 0 to 1."""
    if not intervals:
        return 0.0
    end = max(interval.end_s for interval in intervals)
    ranks = 1 + max(interval.rank for interval in intervals)
    busy = sum(interval.end_s - interval.start_s for interval in intervals)
    return 1 - busy / (ranks * end) if end > 0 else 0.0
