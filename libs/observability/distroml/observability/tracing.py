"""Spans, recorded by the OpenTelemetry SDK where the process set it up.

Nothing here waits for anybody: processors take finished spans, and `distroml.observability.exporting` has the one
that sends them away. A process without a processor records nothing and passes the context on all the same.
Sampler, limits and resource attributes are those of the standard variables (`OTEL_*`), which the SDK reads itself.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace as otel
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.status import Status, StatusCode

from distroml.observability import names, trace
from distroml.observability.trace import TraceContext

SpanKind = otel.SpanKind
Attributes = Mapping[str, str | int | float | bool]
_SCOPE = InstrumentationScope("distroml")


class Tracing:
    """The spans of one process, of the service that it is; `instance` tells it from its like, a fresh id by default."""

    def __init__(
        self, service: str, processors: Sequence[SpanProcessor] = (), *, deployment: str = "", instance: str = ""
    ) -> None:
        self._processors = processors
        self._resource = resource(service, deployment=deployment, instance=instance)
        self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("distroml")

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        attributes: Attributes | None = None,
        fails: Callable[[Exception], bool] = lambda error: True,
    ) -> Generator[otel.Span]:
        """A span around what happens inside, under `parent` or the current context; logs inside carry its ids.

        An exception that leaves it marks it as failed where `fails` says so.
        """
        above = parent or trace.current()
        with self._tracer.start_as_current_span(
            name,
            # Explicitly none without a parent: a span of somebody else's, current in this thread, is not ours.
            context=otel.set_span_in_context(otel.NonRecordingSpan(_otel_context(above) or otel.INVALID_SPAN_CONTEXT)),
            kind=kind,
            attributes=dict(attributes or {}),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            inner = span.get_span_context()
            # A disabled SDK makes no ids where there is no parent.
            context = (
                TraceContext(f"{inner.trace_id:032x}", f"{inner.span_id:016x}", inner.trace_flags.sampled)
                if inner.is_valid
                else trace.unsampled()
            )
            try:
                with trace.use(context):
                    yield span
            except Exception as error:
                if fails(error):
                    span.record_exception(error)
                    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
                raise

    def record(
        self,
        name: str,
        context: TraceContext,
        *,
        parent: TraceContext | None,
        start_ns: int,
        end_ns: int,
        attributes: Attributes | None = None,
        error: str = "",
        of: Resource | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[TraceContext] = (),
    ) -> None:
        """A span that is over, under ids that were handed out before: of a stretch that no one block encloses.

        Args:
            name: few values; what differs goes into `attributes`.
            context: the span's own ids; nothing is recorded where it is not sampled.
            parent: the span above.
            start_ns: Unix nanoseconds.
            end_ns: Unix nanoseconds.
            attributes: what else is known.
            error: why it failed, empty where it did not.
            of: the process that it is a span of, this one by default.
            kind: as OpenTelemetry has it.
            links: other spans that led to it.
        """
        own = _otel_context(context)
        if not context.sampled or own is None:
            return
        span = ReadableSpan(
            name,
            own,
            _otel_context(parent),
            of or self._resource,
            dict(attributes or {}),
            links=[otel.Link(linked) for one in links if (linked := _otel_context(one)) is not None],
            kind=kind,
            status=Status(StatusCode.ERROR, error) if error else Status(),
            start_time=start_ns,
            end_time=max(start_ns, end_ns),
            instrumentation_scope=_SCOPE,
        )
        for processor in self._processors:
            processor.on_end(span)

    def close(self, timeout_s: float = 2.0) -> None:
        """Hand over what the processors still hold; back after `timeout_s`, whatever the receiver does."""
        # A thread that nobody joins at the end: an exporter may hang in a connection for longer than a drain may take.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-closing", daemon=True)
        closing.start()
        closing.join(timeout_s)


def resource(service: str, *, deployment: str = "", instance: str = "") -> Resource:
    """What a process is, by the semantic conventions; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win."""
    own = {
        names.RESOURCE_SERVICE: service,
        names.RESOURCE_NAMESPACE: "distroml",
        names.RESOURCE_INSTANCE: instance or str(uuid.uuid4()),
        **({names.RESOURCE_DEPLOYMENT: deployment} if deployment else {}),
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def _otel_context(context: TraceContext | None) -> otel.SpanContext | None:
    if context is None:
        return None
    return otel.SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=otel.TraceFlags(otel.TraceFlags.SAMPLED if context.sampled else otel.TraceFlags.DEFAULT),
    )
