"""Publishing shows in the traces of what is published: a span for each trace and batch, none where none is sampled.

A batch has commits of many traces, and a busy trace many commits in a batch: a span for each event would be more spans
than events are worth. The header `traceparent` of a message stays that of the span that wrote its event, which readers
go on from: that is its creation context, and sending is a step of its own (OpenTelemetry's conventions for messaging).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from distroml.events import Recorded
from distroml.eventstore.log import Place
from distroml.eventstore.relay.port import Log, Tail
from distroml.observability import names, trace
from distroml.observability.trace import TraceContext
from distroml.observability.tracing import SpanKind, Tracing

MAX_LINKS: Final = 128
"""Of one span, as OpenTelemetry bounds them by default."""


class TracedLog:
    """`Log` as it is, with spans of what it takes; `destination` is the queue's name on the server."""

    def __init__(self, log: Log, destination: str, tracing: Tracing) -> None:
        self._log, self._destination, self._tracing = log, destination, tracing

    async def tail(self) -> Tail:
        """See `Log`."""
        return await self._log.tail()

    async def publish(self, tail: Tail, previous: Place, events: Sequence[Recorded]) -> Tail:
        """See `Log`. What it raises is in the spans, too."""
        start_ns = time.time_ns()
        try:
            end = await self._log.publish(tail, previous, events)
        except Exception as error:
            self._record(events, start_ns, f"{type(error).__name__}: {error}")
            raise
        self._record(events, start_ns)
        return end

    def _record(self, events: Sequence[Recorded], start_ns: int, error: str = "") -> None:
        end_ns = time.time_ns()
        for sent in sampled_of(events).values():
            contexts = list(dict.fromkeys(context for context, _ in sent))
            attributes: dict[str, str | int] = {
                names.SPAN_MESSAGING_SYSTEM: "nats",
                names.SPAN_MESSAGING_OPERATION: "send",
                names.SPAN_MESSAGING_OPERATION_NAME: "publish",
                names.SPAN_MESSAGING_DESTINATION: self._destination,
            }
            if len(sent) > 1:
                attributes[names.SPAN_MESSAGING_BATCH] = len(sent)
            else:
                attributes[names.SPAN_MESSAGING_ID] = sent[0][1]
            self._tracing.record(
                f"{names.SPAN_PUBLISH} {self._destination}",
                contexts[0].child(),
                parent=contexts[0],
                start_ns=start_ns,
                end_ns=end_ns,
                attributes=attributes,
                error=error,
                kind=SpanKind.CLIENT,
                links=contexts[:MAX_LINKS],
            )


def sampled_of(events: Iterable[Recorded]) -> dict[str, list[tuple[TraceContext, str]]]:
    """By trace, the contexts and ids of the events that belong to one that is sampled."""
    found: dict[str, list[tuple[TraceContext, str]]] = {}
    for event in events:
        context = trace.parse(event.context.traceparent) if event.context.traceparent else None
        if context is not None and context.sampled:
            found.setdefault(context.trace_id, []).append((context, event.id))
    return found
