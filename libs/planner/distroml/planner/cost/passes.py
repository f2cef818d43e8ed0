"""Seconds that a pipeline's passes take: what `distroml.planner.timeline` finds pass by pass, in a few milliseconds.

Which pass waits for which is a matter of the schedule alone: that order is found once, and seconds run through it in
one loop. Passes of many microbatches repeat themselves; a few rounds are run and the rest is taken to go on as the
last of them went, for the makespan of such a system grows evenly in the end (it is linear in max-plus algebra:
Baccelli et al., "Synchronization and Linearity", theorem 3.28).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from distroml.planner.plan import Schedule

FORWARD, BACKWARD, WEIGHT = 0, 1, 2
"""Kinds of passes. Under zero_bubble a backward pass leaves the weights' gradients to a weight pass."""
WEIGHT_SHARE = 0.5
"""Of a backward pass's computation: the gradients of weights, which need nothing but what was saved and received."""
_ROUNDS = 3
_PROGRAMS = 64


def order(schedule: Schedule, rank: int, pp: int, chunks: int, microbatches: int) -> Iterator[tuple[int, int, int]]:
    """Kind, stage and microbatch of each pass of pp coordinate `rank`, in the order in which it runs them.

    They are what `torch.distributed.pipelining` executes: GPipe, 1F1B (Narayanan et al., arXiv 2104.04473), its
    interleaved form, and zero bubble (ZB-H1 of Qi et al., arXiv 2401.10241).
    """
    total = chunks * microbatches
    per_round = microbatches // _rounds(pp, microbatches)
    hops = pp - 1 - rank
    warm_up = {
        "gpipe": total,
        "1f1b": hops,
        "interleaved": (chunks - 1) * per_round + 2 * hops,
        "zero_bubble": (chunks - 1) * per_round + hops,
    }[schedule]
    forwards = _turns(FORWARD, rank, pp, chunks, microbatches, per_round)
    backwards = _turns(BACKWARD, rank, pp, chunks, microbatches, per_round)
    for _ in range(min(warm_up, total)):
        yield next(forwards)
    waiting: list[tuple[int, int, int]] = []
    for count, backward in enumerate(backwards):
        if (forward := next(forwards, None)) is not None:
            yield forward
        yield backward
        if schedule == "zero_bubble":
            waiting.append((WEIGHT, *backward[1:]))
            if count >= rank:
                yield waiting.pop(0)
    yield from waiting


def _rounds(pp: int, microbatches: int) -> int:
    rounds = max(1, microbatches // pp)
    while microbatches % rounds:
        rounds -= 1
    return rounds


def _turns(
    kind: int, rank: int, pp: int, chunks: int, microbatches: int, per_round: int
) -> Iterator[tuple[int, int, int]]:
    """A rank's passes of one kind: a round of microbatches through one of its stages, then through the next."""
    for first in range(0, microbatches, per_round):
        for chunk in range(chunks) if kind == FORWARD else reversed(range(chunks)):
            stage = chunk * pp + rank
            for microbatch in range(first, first + per_round):
                yield kind, stage, microbatch


class _Program(NamedTuple):
    """Passes in an order in which each comes after those that it waits for.

    Attributes:
        ranks: on which each runs.
        needs: the pass, counted from 1, whose end it waits for; 0 where its rank alone decides.
        costs: its place in the forward, backward and weight seconds of all stages, one after the other.
    """

    ranks: array[int]
    needs: array[int]
    costs: array[int]


@lru_cache(maxsize=_PROGRAMS)
def _program(schedule: Schedule, pp: int, chunks: int, microbatches: int) -> _Program:
    queues = [order(schedule, rank, pp, chunks, microbatches) for rank in range(pp)]
    stages, many = pp * chunks, microbatches
    program = _Program(array("i"), array("i"), array("i"))
    # Number of the forward and the backward pass of each stage and microbatch, 0 while it has none.
    forward, backward = array("i", bytes(4 * stages * many)), array("i", bytes(4 * stages * many))
    heads = [next(queue, None) for queue in queues]
    number = before = 0
    while any(head is not None for head in heads):
        for rank, queue in enumerate(queues):
            head = heads[rank]
            while head is not None:
                kind, stage, microbatch = head
                place = stage * many + microbatch
                need = 0
                if kind == FORWARD:
                    if stage and not (need := forward[place - many]):
                        break
                elif kind == BACKWARD and not (
                    need := backward[place + many] if stage < stages - 1 else forward[place]
                ):
                    break
                number += 1
                if kind != WEIGHT:
                    (backward if kind else forward)[place] = number
                program.ranks.append(rank)
                program.needs.append(need)
                program.costs.append(kind * stages + stage)
                head = next(queue, None)
            heads[rank] = head
        if number == before:
            raise ValueError(f"{schedule} with pp={pp} and {microbatches} microbatches waits for itself")
        before = number
    return program


def _run(program: _Program, pp: int, seconds: Sequence[float]) -> float:
    free = [0.0] * pp
    ended = [0.0]
    keep = ended.append
    for rank, need, cost in zip(*program, strict=True):
        end, at = ended[need], free[rank]
        if at > end:
            end = at
        end += seconds[cost]
        free[rank] = end
        keep(end)
    return max(free)


def passes_s(
    schedule: Schedule,
    pp: int,
    microbatches: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float],
) -> float:
    """Seconds from a step's first pass to the end of its last, messages between stages apart.

    Args:
        schedule: the order of passes.
        pp: ranks of the pipeline; stage `i` lies on rank `i % pp`.
        microbatches: how many run in the step.
        forward_s: of one microbatch, by stage.
        backward_s: of its whole backward pass, by stage.
        weight_s: of each `backward_s` what the gradients of weights take, which zero_bubble puts off.
    """
    if schedule == "gpipe":
        # Two flow shops of equal jobs, one after the other.
        return sum(sum(way) + (microbatches - 1) * max(way) for way in (forward_s, backward_s))
    chunks = len(forward_s) // pp
    first = backward_s
    if schedule == "zero_bubble":
        first = [whole - weight for whole, weight in zip(backward_s, weight_s, strict=True)]
    seconds = [*forward_s, *first, *weight_s]
    per_round = pp if chunks == 1 else microbatches // _rounds(pp, microbatches)
    few = _ROUNDS * per_round
    if microbatches <= few:
        return _run(_program(schedule, pp, chunks, microbatches), pp, seconds)
    slowest = max(sum(forward_s[rank::pp]) + sum(backward_s[rank::pp]) for rank in range(pp))
    upto = _run(_program(schedule, pp, chunks, few), pp, seconds)
    growth = slowest
    # Where nobody waits but to fill and to drain, the slowest rank's work is all that more microbatches add.
    if upto > least_passes_s(schedule, pp, few, forward_s, backward_s, weight_s) * (1 + 1e-9):
        before = _run(_program(schedule, pp, chunks, few - per_round), pp, seconds)
        growth = max(slowest, (upto - before) / per_round)
    return upto + (microbatches - few) * growth


def least_passes_s(
    schedule: Schedule,
    pp: int,
    microbatches: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float],
) -> float:
    """What `passes_s` is never below: for each rank its fill, its own passes and its drain. Quick."""
    split = schedule == "zero_bubble"
    fill = drain = least = 0.0
    for rank in range(pp):
        busy = microbatches * (sum(forward_s[rank::pp]) + sum(backward_s[rank::pp]))
        # Weight passes may come while earlier stages work on what this rank gave them last.
        late = min(rank + 1, microbatches * len(weight_s) // pp) * max(weight_s[rank::pp]) if split else 0.0
        least = max(least, fill + busy, fill + busy - late + drain)
        fill += forward_s[rank]
        drain += backward_s[rank] - (weight_s[rank] if split else 0.0)
    return least
