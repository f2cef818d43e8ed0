"""What a schedule asks of its stages: messages, microbatches that each one holds, rounds that must be equal."""

from __future__ import annotations

from distroml.planner.plan import Schedule
from distroml.planner.profile import Engine


def sends(schedule: Schedule, pp: int, chunks: int, microbatches: int, engine: Engine) -> int:
    """Messages between neighbouring stages that lie on the critical path of a step.

    A stage in the steady state of 1F1B waits for one message each way per microbatch: no more are in flight than the
    stages after it can work on. An engine that posts receives early streams GPipe's passes: only its fill shows.
    Torch's schedules post a receive when it is wanted, so that GPipe waits for each; 1F1B and its kin exchange both
    ways at once, one time per microbatch (benchmarks/plan_accuracy.py with slow links).
    """
    if pp == 1:
        return 0
    fill, each = 2 * (pp - 1), microbatches * chunks
    if engine == "torch":
        return fill + (2 * each if schedule == "gpipe" else each)
    return fill if schedule == "gpipe" else fill + 2 * each


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
