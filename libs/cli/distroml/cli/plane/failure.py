"""Why a supervisor gave up, as its log tells it: found again among whatever libraries print to the same file."""

from __future__ import annotations

import json
from typing import Any, cast

from distroml.cli.errors import UsageError
from distroml.observability import names

FAILURE = "failure"
"""The field of the supervisor's last line that says what went wrong; `hint` beside it says what to do."""


def told_failure(log: str) -> UsageError | None:
    """The last failure that a supervisor's log tells of; None where it ended without one."""
    for line in reversed(log.splitlines()):
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if isinstance(fields, dict) and names.LABELS + FAILURE in fields:
            told = cast("dict[str, Any]", fields)
            return UsageError(str(told[names.LABELS + FAILURE]), hint=str(told.get(f"{names.LABELS}hint", "")))
    return None
