"""What people see of rendezvous: log lines and metrics of what was decided."""

from __future__ import annotations

from typing import Final

from distroml import observability
from distroml.observability.metrics import counter, gauge
from distroml.rendezvous.domain import Event
from distroml.rendezvous.domain import events as ev

log = observability.logger(__name__)

SESSIONS: Final = gauge("distroml_rendezvous_sessions", "Agents joined to this replica now.")
REFUSED: Final = counter(
    "distroml_rendezvous_reports_refused_total", "Reports that can never be recorded, by reason.", ("reason",)
)
_DECIDED: Final = counter(
    "distroml_rendezvous_decisions_total",
    "Generations opened, formed and broken, and attempts closed, as this replica has seen them.",
    ("event",),
)


def note(event: Event, job: str) -> None:
    """Log and count `event` where it is a decision about a generation."""
    match event:
        case ev.GenerationOpened():
            log.info(f"generation {event.number} opened: {event.reason}", job=job, generation=event.number)
        case ev.GenerationFormed(generation=formed):
            text = f"generation {formed.number} formed with {formed.world_size} workers"
            log.info(text, job=job, generation=formed.number)
        case ev.GenerationBroken():
            text = f"generation {event.number} broke: {event.cause}: {event.message}"
            log.warning(text, job=job, generation=event.number, worker=event.worker)
        case ev.Closed():
            text = f"attempt {event.attempt} closed: {event.outcome} {event.reason} {event.message}".rstrip()
            log.info(text, job=job, generation=event.generation)
        case ev.MemberLost():
            log.warning(f"member lost: {event.cause}", job=job, generation=event.generation, node=event.node)
            return
        case _:
            return
    _DECIDED.labels(type(event).__name__).inc()
