"""Logs, metrics and traces of a process: one set-up call, and every name as a constant."""

from distroml.observability import names
from distroml.observability.logs import MAX_LINE_BYTES, Log, bound, logger
from distroml.observability.setup import setup
from distroml.observability.trace import TraceContext, current, fresh, parse, use

__all__ = [
    "MAX_LINE_BYTES",
    "Log",
    "TraceContext",
    "bound",
    "current",
    "fresh",
    "logger",
    "names",
    "parse",
    "setup",
    "use",
]
