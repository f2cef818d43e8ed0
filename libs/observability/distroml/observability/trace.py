"""The W3C trace context of what runs now: standard library only, so that every process can carry one.

Spans are recorded by OpenTelemetry where a process sets it up (`distroml.observability.tracing`); a process
without it still passes the context on, so that a trace is whole from the command line to the log.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span's place in a trace: lower case hex ids of 32 and 16 digits, and whether it is sampled."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header value by which the next process continues this trace."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def child(self) -> TraceContext:
        """A new span id in the same trace."""
        return replace(self, span_id=secrets.token_hex(8))


_current: ContextVar[TraceContext | None] = ContextVar("distroml_trace", default=None)


def fresh() -> TraceContext:
    """The root of a new, sampled trace."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8))


def parse(traceparent: str) -> TraceContext | None:
    """Read a `traceparent` header; None where it is malformed, as the W3C asks: the trace then starts anew."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def page_url(jaeger_ui: str, trace_id: str) -> str:
    """Where Jaeger shows a trace; empty where there is no Jaeger or no trace."""
    return f"{jaeger_ui.rstrip('/')}/trace/{trace_id}" if jaeger_ui and trace_id else ""


def current() -> TraceContext | None:
    """The trace context of the running task, if it has one."""
    return _current.get()


def unsampled() -> TraceContext:
    """A context for what is asked over and over: nobody records it, on either side of a call."""
    return replace(fresh(), sampled=False)


@contextmanager
def use(context: TraceContext | None) -> Generator[None]:
    """Everything inside belongs to `context`."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
