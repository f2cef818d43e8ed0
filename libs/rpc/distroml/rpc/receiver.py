"""Who takes this process' spans, as OpenTelemetry's standard variables say, and why nobody does.

Exporters say only that they failed. So the receiver is asked once more with a request without spans, which every
receiver of OTLP takes (OpenTelemetry Protocol, "OTLP/HTTP Request" and "OTLP/gRPC Request").
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import grpc

from distroml.observability.destination import Destination, destination

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_CHECK: Final = f"check host and port in {_ENDPOINT}"


def place(environ: Mapping[str, str]) -> str | None:
    """Where spans go by OTLP; None where they go nowhere, or by Jaeger's old protocol, which answers nobody.

    Raises:
        ValueError: what the variables ask for cannot be had.
    """
    match destination(environ):
        case Destination.OTLP_HTTP:
            whole = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            return whole or environ.get(_ENDPOINT, "http://localhost:4318").rstrip("/") + "/v1/traces"
        case Destination.OTLP_GRPC:
            return _said(environ, "ENDPOINT") or "http://localhost:4317"
        case _:
            return None


def survey(environ: Mapping[str, str], timeout_s: float = 3.0) -> str | None:
    """Why nobody takes spans there, None where somebody does or nobody can be asked; blocks for seconds at most.

    Raises:
        ValueError: as `place`.
    """
    where = place(environ)
    if where is None:
        return None
    ask = _ask_http if destination(environ) is Destination.OTLP_HTTP else _ask_grpc
    try:
        why = ask(where, environ, timeout_s)
    except ssl.SSLError as error:
        why = (
            f"no secure connection ({error}): is it http:// in truth, or a certificate of an authority "
            "that OTEL_EXPORTER_OTLP_CERTIFICATE should name?"
        )
    except (http.client.BadStatusLine, UnicodeError):
        why = f"what answers there speaks another protocol; {_CHECK}"
    except (OSError, http.client.HTTPException) as error:
        why = f"{error or type(error).__name__}; see that the receiver of spans runs there, or {_CHECK}"
    return f"spans cannot be exported to {where}: {why}" if why else None


def _ask_http(where: str, environ: Mapping[str, str], timeout_s: float) -> str | None:
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"it is no address; {_ENDPOINT} is http://HOST:4318 or https://..."
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, context=_trusted(environ), timeout=timeout_s)
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    )
    try:
        connection.request(
            "POST", parts.path or "/", b"", {"Content-Type": "application/x-protobuf", **_headers(environ)}
        )
        status = connection.getresponse().status
    finally:
        connection.close()
    if status in (401, 403):
        return f"it refuses our credentials ({status}); OTEL_EXPORTER_OTLP_HEADERS has them"
    if status in (404, 405):
        return f"what answers there takes no spans ({status}); {_CHECK}, which is 4318 of a usual receiver"
    return None if status < 300 else f"it answers {status}; see its log"


def _ask_grpc(where: str, environ: Mapping[str, str], timeout_s: float) -> str | None:
    parts = urlsplit(where if "://" in where else f"http://{where}")
    insecure = parts.scheme == "http" or _said(environ, "INSECURE").strip().lower() == "true"
    channel = (
        grpc.insecure_channel(parts.netloc)
        if insecure
        else grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(_authorities(environ)))
    )
    try:
        ask = channel.unary_unary(_EXPORT, _as_it_is, _as_it_is)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        metadata = tuple((name.lower(), value) for name, value in _headers(environ).items())
        ask(b"", timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        failed = cast("grpc.Call", error)
        match failed.code():
            case grpc.StatusCode.UNIMPLEMENTED:
                return f"what answers there takes no spans; {_CHECK}, which is 4317 of a usual receiver"
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED as code:
                return f"it refuses our credentials ({code.name}); OTEL_EXPORTER_OTLP_HEADERS has them"
            case code:
                return f"{code.name}: {failed.details()}; see that the receiver of spans runs there, or {_CHECK}"
    finally:
        channel.close()
    return None


def _as_it_is(data: bytes) -> bytes:
    return data


def _said(environ: Mapping[str, str], name: str) -> str:
    """A variable for traces, else the one for all signals."""
    return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""


def _headers(environ: Mapping[str, str]) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in _said(environ, "HEADERS").split(",") if "=" in pair)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def _trusted(environ: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=_said(environ, "CERTIFICATE") or None)
    if certificate := _said(environ, "CLIENT_CERTIFICATE"):
        context.load_cert_chain(certificate, _said(environ, "CLIENT_KEY") or None)
    return context


def _authorities(environ: Mapping[str, str]) -> bytes | None:
    path = _said(environ, "CERTIFICATE")
    return Path(path).read_bytes() if path else None
