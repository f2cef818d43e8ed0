"""Seconds of a step's passes through the pipeline, and how many microbatches each stage holds, by schedule.

The slowest rank works through all microbatches; the fill and the drain around it are its bubble. With p equal ranks
of v chunks that is (p-1)/v passes for 1F1B and interleaved schedules (Narayanan et al., arXiv 2104.04473, §2.2) and,
where the backward pass is split so that weight gradients fill the gaps, only the forward's share of it (Qi et al.,
"Zero Bubble Pipeline Parallelism", arXiv 2401.10241, §2).
"""

from __future__ import annotations

from collections.abc import Sequence

from distroml.planner.plan import Schedule


def bubble_s(
    schedule: Schedule,
    chunks: int,
    microbatches: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    recompute_s: Sequence[float],
) -> float:
    """Seconds that the slowest rank waits for the others in one step.

    Args:
        schedule: of the pipeline.
        chunks: stages on each rank.
        microbatches: in a step.
        forward_s: of each rank, one microbatch through all its chunks.
        backward_s: of each rank, with what it computes again.
        recompute_s: the share of `backward_s` that it computes again.
    """
    p, m = len(forward_s), microbatches
    if p == 1:
        return 0.0
    passes = [f + b for f, b in zip(forward_s, backward_s, strict=True)]
    worst = max(passes)
    if schedule == "gpipe":
        # Two flow shops, one after the other.
        ways = (forward_s, backward_s)
        return sum(sum(way) + (m - 1) * max(way) for way in ways) - m * worst
    if schedule == "1f1b" and chunks == 1:
        return max(m * passes[rank] + _idle_s(rank, m, forward_s, backward_s) for rank in range(p)) - m * worst
    others = p - 1
    mean = (sum(passes) - worst) / others
    # With fewer microbatches than ranks, a rank that has passed all through one chunk waits until the first comes
    # around to its next.
    idle = max(0, p - m)
    filling = mean
    if schedule == "zero_bubble":
        needed = [f + again for f, again in zip(forward_s, recompute_s, strict=True)]
        filling = (sum(needed) - needed[passes.index(worst)]) / others
    return idle * mean + (others - idle) * filling / chunks


def _idle_s(rank: int, m: int, forward_s: Sequence[float], backward_s: Sequence[float]) -> float:
    """What one rank of 1F1B waits: for the stages before it, and for those after it to give back what it sent.

    While the first microbatch is on its way it runs `warm` more forward passes; at the end as many backward passes
    come one cycle of the later stages apart.
    """
    p = len(forward_s)
    later = [forward_s[one] + backward_s[one] for one in range(rank + 1, p)]
    before = sum(forward_s[:rank]) + sum(backward_s[:rank])
    if not later:
        return before
    warm = min(p - 1 - rank, m - 1)
    first = max(0.0, sum(later) - warm * forward_s[rank])
    return before + first + warm * max(0.0, max(later) - backward_s[rank])


def sends(schedule: Schedule, pp: int, chunks: int, microbatches: int) -> int:
    """Messages between neighbouring stages that lie on the critical path of a step, both directions counted.

    A stage in the steady state of 1F1B waits for one message each way per microbatch: no more are in flight than the
    stages after it can work on. GPipe's passes stream, and only the fill shows.
    """
    if pp == 1:
        return 0
    fill = 2 * (pp - 1)
    return fill if schedule == "gpipe" else fill + 2 * microbatches * chunks


def in_flight(schedule: Schedule, pp: int, chunks: int, microbatches: int, rank: int) -> tuple[int, ...]:
    """Microbatches whose activations each chunk of pp coordinate `rank` holds at the peak.

    Warm-up runs forward passes in rounds of pp microbatches, chunk after chunk. 1F1B has pp - rank on the way; the
    interleaved schedule (chunks-1) pp + 2 (pp-rank-1) + 1 in all; zero-bubble's put off weight gradients for as many
    microbatches as the rank's number, which makes all ranks hold chunks x pp.
    """
    if schedule == "gpipe":
        return (microbatches,) * chunks
    if chunks == 1:
        held = pp - rank if schedule == "1f1b" else pp
        if schedule == "interleaved":
            held = 2 * (pp - rank - 1) + 1
        return (min(microbatches, held),)
    total = (chunks - 1) * pp + (2 * (pp - rank - 1) + 1 if schedule == "interleaved" else pp)
    total = min(total, microbatches * chunks)
    rounds, rest = divmod(total, pp)
    counts = [pp * (rounds // chunks + (chunk < rounds % chunks)) for chunk in range(chunks)]
    counts[rounds % chunks] += rest
    return tuple(min(microbatches, count) for count in counts)


def fits_schedule(schedule: Schedule, pp: int, chunks: int, microbatches: int) -> str:
    """Why the schedule cannot run `microbatches`, or ""."""
    if pp == 1 or schedule in ("gpipe", "1f1b"):
        return ""
    rounds = max(1, microbatches // pp)
    if microbatches % rounds:
        return (
            f"schedule={schedule} runs {microbatches} microbatches in {rounds} equal rounds of about pp={pp}; "
            f"{microbatches} is not divisible by {rounds}"
        )
    return ""
