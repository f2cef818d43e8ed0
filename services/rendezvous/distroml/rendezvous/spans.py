"""The spans of one job's rendezvous, made of its committed events.

Every replica sees every event; who committed one records the span that ends with it, so that each is recorded once.
A replica that starts in the middle of a recovery has not seen it begin and records no span of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from distroml.observability import names, trace
from distroml.observability.trace import TraceContext
from distroml.observability.tracing import Attributes, Tracing
from distroml.rendezvous.domain import Event
from distroml.rendezvous.domain import events as ev

_REMEMBERED: Final = 16
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Recovery:
    """A generation broke, and no later one has made a step yet."""

    context: TraceContext
    event: ev.GenerationBroken


class JobSpans:
    """Hands out the trace context of each commit, and records the spans that come of it."""

    def __init__(self, job: str, tracing: Tracing) -> None:
        self._job, self._tracing = job, tracing
        self._above: TraceContext | None = None
        self._handed: deque[str] = deque(maxlen=_REMEMBERED)
        self._opened_ms = 0
        self._recovery: _Recovery | None = None

    def belongs_to(self, traceparent: str) -> None:
        """An agent joined in this trace; the first word counts."""
        self._above = self._above or trace.parse(traceparent)

    def of_commit(self) -> str:
        """The trace context for the next commit; empty where the job's trace is not known."""
        if self._above is None:
            return ""
        self._handed.append(self._above.child().traceparent)
        return self._handed[-1]

    def saw(self, event: Event, traceparent: str) -> None:
        """Take a committed event into account, in the order of the log."""
        context = trace.parse(traceparent) if traceparent in self._handed else None
        match event:
            case ev.GenerationOpened():
                self._opened_ms = event.at_ms
            case ev.GenerationFormed(generation=formed):
                attributes = {names.SPAN_GENERATION: formed.number, names.SPAN_WORLD_SIZE: formed.world_size}
                above = self._recovery.context if self._recovery else self._above
                self._record(names.SPAN_FORM, context, above, self._opened_ms or formed.at_ms, formed.at_ms, attributes)
            case ev.GenerationBroken():
                self._recovered(context, event.at_ms, "it broke again")
                if (broken := trace.parse(traceparent)) is not None:
                    self._recovery = _Recovery(broken, event)
            case ev.StepRecorded() if self._recovery and event.generation > self._recovery.event.number:
                self._recovered(context, event.at_ms)
            case ev.Closed():
                self._recovered(context, event.at_ms, "the attempt was closed")
                attributes = {names.SPAN_GENERATION: event.generation, names.SPAN_OUTCOME: event.outcome}
                self._record(names.SPAN_CLOSE, context, self._above, event.at_ms, event.at_ms, attributes)
            case _:
                pass

    def _recovered(self, context: TraceContext | None, at_ms: int, error: str = "") -> None:
        """The recovery under way, if there is one, is over; the commit with `context` says so where that is ours."""
        recovery, self._recovery = self._recovery, None
        # What broke and was closed in one commit was not recovered from: the commit's one span is the closing.
        if recovery is None or context is None or recovery.context == context:
            return
        broken = recovery.event
        attributes: Attributes = {
            names.SPAN_GENERATION: broken.number,
            names.SPAN_CAUSE: broken.cause,
            names.SPAN_WORKER: broken.worker,
        }
        self._record(names.SPAN_RECOVER, recovery.context, self._above, broken.at_ms, at_ms, attributes, error)

    def _record(
        self,
        name: str,
        context: TraceContext | None,
        above: TraceContext | None,
        start_ms: int,
        end_ms: int,
        attributes: Attributes,
        error: str = "",
    ) -> None:
        if context is None:
            return
        self._tracing.record(
            name,
            context,
            parent=above,
            start_ns=start_ms * _NS_PER_MS,
            end_ns=end_ms * _NS_PER_MS,
            attributes={names.SPAN_JOB: self._job, **attributes},
            error=error,
        )
