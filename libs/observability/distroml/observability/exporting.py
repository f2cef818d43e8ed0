"""Finished spans leave the process bounded, counted, and waited for by nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from distroml.observability import names
from distroml.observability.destination import DEFAULT_QUEUE, Destination, destination, queue_size
from distroml.observability.logs import logger
from distroml.observability.metrics import counter

log = logger(__name__)

Trouble = Callable[[str | None], None]
"""Told why spans cannot be exported, None as soon as they can; called from a thread of its own."""

_BATCH: Final = 512
PROBE_S: Final = 5.0
"""While spans cannot be exported, an empty batch is tried this often."""

_EXPORTED = counter(names.SPANS_EXPORTED, "Spans that the receiver took.")
_DROPPED = counter(names.SPANS_DROPPED, "Spans that nobody will see.", (names.LABEL_WHY,))


# Module, class, and how it is had.
_EXPORTERS: Final = {
    Destination.OTLP_HTTP: (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "OTLPSpanExporter",
        "pip install 'distroml[stack]'",
    ),
    Destination.OTLP_GRPC: (
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "OTLPSpanExporter",
        "pip install opentelemetry-exporter-otlp-proto-grpc, or take OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
    ),
    Destination.JAEGER_THRIFT: (
        "distroml.observability.thrift",
        "thrift_exporter",
        "pip install 'distroml[jaeger-thrift]'",
    ),
}


def exporting(environ: Mapping[str, str]) -> Exporting | None:
    """The processor that exports as the variables ask, None where they ask for nothing.

    Raises:
        ValueError: what they ask for is unknown or malformed, or its package is missing.
    """
    chosen = destination(environ)
    if chosen is Destination.NONE:
        return None
    module, name, install = _EXPORTERS[chosen]
    try:
        made: Callable[[], SpanExporter] = getattr(import_module(module), name)
        return Exporting(made(), queue=queue_size(environ))
    except ImportError as error:
        raise ValueError(f"spans are to leave by {chosen}, and its exporter is missing ({error}): {install}") from None


def dropped(count: int, why: str) -> None:
    """Count spans that were lost before they came here."""
    if count:
        _DROPPED.labels(why).inc(count)


class Exporting(SpanProcessor):
    """Batches spans to an exporter in a thread; at most `queue` wait, and who comes then is dropped and counted."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        queue: int = DEFAULT_QUEUE,
        trouble: Trouble | None = None,
        probe_s: float = PROBE_S,
    ) -> None:
        self.trouble = trouble
        self._probe_s, self._probing, self._ended = probe_s, False, threading.Event()
        self._queue = self._room = queue
        self._lock = threading.Lock()
        self._failing = False
        self._closed = False
        self._watched = _Watched(exporter, self._exported)
        self._batches = BatchSpanProcessor(
            self._watched, max_queue_size=queue, max_export_batch_size=min(queue, _BATCH)
        )
        # They say the same of every batch; what is to be known is said here, once.
        for quiet in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal", "opentelemetry.sdk.trace.export"):
            logging.getLogger(quiet).setLevel(logging.CRITICAL)

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span where there is room."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            taken = self._room > 0 and not self._closed
            self._room -= taken
        if taken:
            self._batches.on_end(span)
        else:
            _DROPPED.labels("unsent" if self._closed else "full").inc()

    def shutdown(self) -> None:
        """Export what waits, as far as the exporter does it in its time."""
        with self._lock:
            self._closed = True
        self._ended.set()
        self._batches.shutdown()

    def abandon(self) -> None:
        """The process ends: what still waits is lost, which is counted and said."""
        with self._lock:
            unsent, self._room = self._queue - self._room, self._queue
        if unsent:
            _DROPPED.labels("unsent").inc(unsent)
            log.warning("spans were not exported before the end", count=unsent)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits."""
        return self._batches.force_flush(timeout_millis)

    def _exported(self, count: int, why: str | None) -> None:
        with self._lock:
            self._room += count
        if why is None:
            _EXPORTED.inc(count)
        else:
            _DROPPED.labels("refused").inc(count)
        if (why is not None) == self._failing:
            return
        self._failing = why is not None
        if why is not None:
            log.warning("spans cannot be exported; they are dropped and counted until they can be", why=why)
        else:
            log.info("spans are exported again")
        if self.trouble is not None and not self._closed:
            self.trouble(why)
        with self._lock:
            begins, self._probing = self._failing and not self._probing, self._probing or self._failing
        if begins:
            threading.Thread(target=self._probe, name="traces-probing", daemon=True).start()

    def _probe(self) -> None:
        """Who has no spans to export for a while would go on saying that they cannot be."""
        while not self._ended.wait(self._probe_s):
            self._watched.export(())
            with self._lock:
                if not self._failing:
                    self._probing = False
                    return


class _Watched(SpanExporter):
    """Says what became of each batch."""

    def __init__(self, exporter: SpanExporter, exported: Callable[[int, str | None], None]) -> None:
        self._exporter, self._exported = exporter, exported

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
            why = None if result is SpanExportResult.SUCCESS else "the receiver of spans is away or refuses them"
        except Exception as error:
            result, why = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        self._exported(len(spans), why)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
