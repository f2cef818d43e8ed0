"""What people see of rendezvous: log lines and metrics of what was decided."""

from __future__ import annotations

from typing import Final

from distroml import observability
from distroml.observability import names
from distroml.observability.metrics import counter, gauge
from distroml.rendezvous.domain import Event
from distroml.rendezvous.domain import events as ev

log = observability.logger(__name__)

SESSIONS: Final = gauge(names.RENDEZVOUS_SESSIONS, "Agents joined to this replica now.")
REFUSED: Final = counter(
    names.RENDEZVOUS_REFUSED, "Reports that can never be recorded, by reason.", (names.LABEL_REASON,)
)
_DECIDED: Final = counter(
    names.RENDEZVOUS_DECISIONS,
    "Generations opened, formed and broken, and attempts closed, as this replica has seen them.",
    (names.LABEL_EVENT,),
)

# A series that begins at its first count would hide it from `rate`.
for _event in (ev.GenerationOpened, ev.GenerationFormed, ev.GenerationBroken, ev.Closed):
    _DECIDED.labels(_event.__name__)


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
