"""Where finished spans go, as OpenTelemetry's standard variables say: standard library only.

Specification: OpenTelemetry, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter". One thing is
narrower here: without an endpoint and without `OTEL_TRACES_EXPORTER` nothing is exported, where the standard would try
localhost.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

DEFAULT_QUEUE: Final = 2048
"""Spans that may wait to be exported, as the standard has it."""


class Destination(StrEnum):
    """How spans leave this process."""

    NONE = "none"
    OTLP_HTTP = "http/protobuf"
    OTLP_GRPC = "grpc"
    JAEGER_THRIFT = "jaeger"


def destination(environ: Mapping[str, str]) -> Destination:
    """What the variables ask for; raises `ValueError` where that cannot be had."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return Destination.NONE
    if exporter == "jaeger":
        return Destination.JAEGER_THRIFT
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER={exporter!r} is not known here; use otlp, jaeger or none")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    match protocol.strip().lower():
        case "" | "http/protobuf":
            return Destination.OTLP_HTTP
        case "grpc":
            return Destination.OTLP_GRPC
        case other:
            raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={other!r} is not known here; use http/protobuf or grpc")


def queue_size(environ: Mapping[str, str]) -> int:
    """How many spans may wait to be exported (`OTEL_BSP_MAX_QUEUE_SIZE`); raises `ValueError`."""
    text = environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or str(DEFAULT_QUEUE)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"OTEL_BSP_MAX_QUEUE_SIZE={text!r}: expected a whole number, at least 1")
    return int(text)
