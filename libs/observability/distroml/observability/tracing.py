"""Spans, recorded by the OpenTelemetry SDK where the process set it up.

This process exports nothing by itself: whoever wants the spans passes a span processor to `setup_tracing`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace as otel
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from distroml.observability.trace import TraceContext, current, use

Attributes = Mapping[str, str | int | float | bool]


class Tracing:
    """The spans of one service."""

    def __init__(self, service: str, processors: Sequence[SpanProcessor] = ()) -> None:
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("distroml")

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: otel.SpanKind = otel.SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        attributes: Attributes | None = None,
    ) -> Generator[otel.Span]:
        """A span around what happens inside, under `parent` or the current context; logs inside carry its ids.

        An exception that leaves it marks it as failed.
        """
        above = parent or current()
        with self._tracer.start_as_current_span(
            name,
            context=otel.set_span_in_context(otel.NonRecordingSpan(_otel_context(above))) if above else None,
            kind=kind,
            attributes=dict(attributes or {}),
        ) as span:
            inner = span.get_span_context()
            context = TraceContext(f"{inner.trace_id:032x}", f"{inner.span_id:016x}", inner.trace_flags.sampled)
            with use(context):
                yield span

    def close(self) -> None:
        """Hand over what the processors still hold."""
        self._provider.shutdown()


def _otel_context(context: TraceContext) -> otel.SpanContext:
    return otel.SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=otel.TraceFlags(otel.TraceFlags.SAMPLED if context.sampled else otel.TraceFlags.DEFAULT),
    )
