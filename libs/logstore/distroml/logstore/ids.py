"""The trace that a line belongs to, where the line itself says so: structured lines of ECS and OpenTelemetry do."""

from __future__ import annotations

import re
from typing import Final

_TRACE: Final = re.compile(r'"?trace[._]?id"?\s*[=:]\s*"?([0-9a-f]{32})\b', re.IGNORECASE)
_SPAN: Final = re.compile(r'"?span[._]?id"?\s*[=:]\s*"?([0-9a-f]{16})\b', re.IGNORECASE)


def none_names_ids(lines: bytes) -> bool:
    """Whether surely none of these lines names a trace."""
    return b"race" not in lines and (b"R" not in lines or b"RACE" not in lines)


def ids_of(text: str) -> tuple[str, str]:
    """Trace and span id in hexadecimal; empty where the line names none."""
    # Nearly no line does, and this is much quicker than the expression.
    if "race" not in text and "RACE" not in text:
        return "", ""
    trace = _TRACE.search(text)
    if trace is None:
        return "", ""
    span = _SPAN.search(text)
    return trace[1].lower(), span[1].lower() if span else ""
