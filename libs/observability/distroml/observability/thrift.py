"""Jaeger's old Thrift exporter beside today's SDK, for collectors that take nothing newer.

Version 1.21 was its last. It is told where to send by the variables of its time: `OTEL_EXPORTER_JAEGER_ENDPOINT` for
Thrift over HTTP, else `OTEL_EXPORTER_JAEGER_AGENT_HOST` and `_PORT` for UDP, where nobody hears of what is lost.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from typing import Final

from opentelemetry.sdk import environment_variables
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_PREFIX: Final = "OTEL_EXPORTER_JAEGER_"
_NAMES: Final = (
    "ENDPOINT",
    "USER",
    "PASSWORD",
    "TIMEOUT",
    "AGENT_HOST",
    "AGENT_PORT",
    "AGENT_SPLIT_OVERSIZED_BATCHES",
)


def thrift_exporter() -> SpanExporter:
    """The exporter, told by the environment where to send; raises `ImportError` where it is not installed."""
    # It takes the variables' names from the SDK, which has dropped them since.
    for name in _NAMES:
        if not hasattr(environment_variables, _PREFIX + name):
            setattr(environment_variables, _PREFIX + name, _PREFIX + name)
    with warnings.catch_warnings():
        # That it is deprecated is known, and said where it is chosen.
        warnings.simplefilter("ignore", DeprecationWarning)
        module = import_module("opentelemetry.exporter.jaeger.thrift")
        return _PerProcess(module.JaegerExporter(udp_split_oversized_batches=True))


class _PerProcess(SpanExporter):
    """The exporter takes all spans of a batch for those of one process: here each process gets a batch of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        results = [self._exporter.export(list(some)) for _, some in groupby(spans, key=lambda span: span.resource)]
        failed = any(result is not SpanExportResult.SUCCESS for result in results)
        return SpanExportResult.FAILURE if failed else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._exporter.shutdown()
        # It leaves its connection open.
        if (collector := getattr(self._exporter, "_collector", None)) is not None:
            collector.http_transport.close()
