"""Whether the stream of a job that is over may leave the live state, and the job's fence with it."""

from __future__ import annotations

from distroml.rendezvous.domain.model import Phase, Rendezvous


def is_settled(state: Rendezvous) -> bool:
    """Whether no attempt is under way.

    That alone is not enough: a paused or a requeued job has another attempt, whose generations go on counting and
    compare the fence. So the job itself must be over, which the scheduler decides.
    """
    return state.phase not in (Phase.OPENING, Phase.FORMED)
