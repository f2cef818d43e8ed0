"""Seconds of a step's passes through the pipeline, and how many microbatches each stage holds, by schedule.

The slowest rank works through all microbatches; the fill and the drain around it are its bubble. With p ranks of v
chunks that is (p-1)/v passes for 1F1B and interleaved schedules (Narayanan et al., arXiv 2104.04473, §2.2) and, where
the backward pass is split so that weight gradients fill the gaps, only the forward's share of it (Qi et al., "Zero
Bubble Pipeline Parallelism", arXiv 2401.10241, §2).
"""

from __future__ import annotations

from collections.abc import Sequence

from distroml.planner.plan import Schedule


def fill_s(
    schedule: Schedule, chunks: int, microbatches: int, passes_s: Sequence[float], forwards_s: Sequence[float]
) -> float:
    """Seconds that the slowest rank waits for the others in one step.

    Args:
        schedule: of the pipeline.
        chunks: stages on each rank.
        microbatches: in a step. With fewer than ranks, a rank that has passed all through one chunk waits until the
            first comes around to its next.
        passes_s: of each rank, one microbatch forward and backward through all its chunks.
        forwards_s: the share of it that must run before an output is there: forward, and forward again.
    """
    others = len(passes_s) - 1
    if others == 0:
        return 0.0
    worst = max(passes_s)
    mean = (sum(passes_s) - worst) / others
    idle = max(0, others + 1 - microbatches)
    filling = mean
    if schedule == "zero_bubble":
        filling = (sum(forwards_s) - forwards_s[passes_s.index(worst)]) / others
    return idle * mean + (others - idle) * filling / chunks


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
