"""Public events in words, for people who ask why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from distroml.api.common.v1 import common_pb2
from distroml.events import Recorded, UnknownEvent
from distroml.rpc.publicevents import decode_public

Say = Callable[[Any], str]


def _gang(placement: Any) -> str:
    workers = sum(len(part.slots) for part in placement)
    return f"{_workers(workers)} on {', '.join(part.node for part in placement)}"


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def _category(number: int) -> str:
    name = common_pb2.FailureCategory.Name(number)  # pyright: ignore[reportArgumentType] - an open enum's number
    return name.removeprefix("FAILURE_CATEGORY_").lower().replace("_", " ")


def _by(actor: str) -> str:
    return f" by {actor}" if actor else ""


_WORDS: Final[Mapping[str, Say]] = {
    "scheduler.job.Submitted": lambda m: f"submitted{_by(m.actor)}",
    "scheduler.job.Queued": lambda m: "put into the queue",
    "scheduler.job.Admitted": lambda m: f"attempt {m.attempt} got {_gang(m.placement)}",
    "scheduler.job.Started": lambda m: f"attempt {m.attempt} runs in generation {m.generation}",
    "scheduler.job.PauseRequested": lambda m: f"asked to pause{_by(m.actor)}",
    "scheduler.job.Paused": lambda m: "paused",
    "scheduler.job.Resumed": lambda m: f"resumed{_by(m.actor)}",
    "scheduler.job.ResizeRequested": lambda m: f"asked for {m.min_workers}..{m.max_workers} workers{_by(m.actor)}",
    "scheduler.job.Resized": lambda m: f"now has {_gang(m.placement)}",
    "scheduler.job.PriorityChanged": lambda m: f"priority set to {m.priority}{_by(m.actor)}",
    "scheduler.job.PreemptionRequested": lambda m: f"taken off its slots ({m.reason}): {m.message}",
    "scheduler.job.Requeued": lambda m: f"put back into the queue ({m.reason})",
    "scheduler.job.FailureCounted": lambda m: f"a failure was counted ({_category(m.category)}): {m.message}",
    "scheduler.job.Succeeded": lambda m: "succeeded",
    "scheduler.job.Failed": lambda m: f"failed for good ({m.reason}, {_category(m.category)}): {m.message}",
    "scheduler.job.CancelRequested": lambda m: f"asked to end{_by(m.actor)}" + (f": {m.why}" if m.why else ""),
    "scheduler.job.Cancelled": lambda m: "cancelled",
    "rendezvous.generation.GenerationFormed": lambda m: (
        f"generation {m.generation.number} formed with {_workers(m.generation.world_size)}"
    ),
    "rendezvous.generation.MemberLost": lambda m: f"{m.node} left generation {m.generation}: {m.cause}",
    "rendezvous.generation.GenerationBroken": lambda m: f"generation {m.number} broke: {m.message or m.cause}",
    "rendezvous.generation.Closed": lambda m: f"rendezvous closed attempt {m.attempt}: {m.outcome}",
    "rendezvous.worker.HangDetected": lambda m: f"rank {m.rank} was silent for {m.silent_s:.0f} s",
    "checkpoint.Committed": lambda m: f"checkpoint of step {m.step} committed",
    "checkpoint.SaveFailed": lambda m: f"the save of step {m.step} failed: {m.message}",
}

MAX_CHARS: Final = 300


def in_words(recorded: Recorded) -> str | None:
    """One line about an event that a job's owner may want to know of; None for the others."""
    say = _WORDS.get(recorded.type)
    if say is None or not recorded.public:
        return None
    try:
        text = say(decode_public(recorded.type, recorded.schema, recorded.data))
    except (UnknownEvent, ValueError, AttributeError):
        # A newer release's event: its name still says something.
        text = recorded.type.rpartition(".")[2]
    at = datetime.fromtimestamp(recorded.context.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{at} {text}"[:MAX_CHARS]
