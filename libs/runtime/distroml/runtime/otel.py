"""A script's own OpenTelemetry spans leave by the agent, as the runtime's do: no exporter runs beside the training.

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(LinkExporter()))
    tracer = provider.get_tracer("train")
    with tracer.start_as_current_span("tokenize", context=job_context()):
        ...

Needs `opentelemetry-sdk` in the script's environment; the runtime itself does not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from distroml.runtime.link import Link, process_link
from distroml.workerlink import Span, environment

_MAX_NAME, _MAX_TEXT = 128, 1000


def job_context() -> Context:
    """Where the script's spans belong in its job's trace; an empty context where nobody traces."""
    carrier = {"traceparent": os.environ.get(environment.TRACEPARENT, "")}
    return TraceContextTextMapPropagator().extract(carrier)


class LinkExporter(SpanExporter):
    """Hands finished spans to the agent and never waits; where no agent is, they go nowhere."""

    def __init__(self, link: Link | None = None) -> None:
        self._link = link or process_link()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Queue the spans on the link."""
        for span in spans:
            if (message := _message(span)) is not None:
                self._link.span(message)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """The link is the process' own, and goes on."""


def _message(span: ReadableSpan) -> Span | None:
    context, parent = span.get_span_context(), span.parent
    if context is None or span.start_time is None or span.end_time is None:
        return None
    return Span(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_span_id=f"{parent.span_id:016x}" if parent is not None else "",
        name=span.name[:_MAX_NAME],
        start_ns=span.start_time,
        end_ns=span.end_time,
        attributes={
            key[:_MAX_NAME]: value if isinstance(value, int | float) else str(value)[:_MAX_TEXT]
            for key, value in (span.attributes or {}).items()
        },
        error=(span.status.description or "failed")[:_MAX_TEXT] if span.status.status_code is StatusCode.ERROR else "",
    )
