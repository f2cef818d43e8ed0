"""How grave a line is, as the line itself says: training scripts log in many ways."""

from __future__ import annotations

import re
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
"""From harmless to grave, named as in ECS `log.level`."""

_NAMES: Final = {
    "trace": "debug", "debug": "debug", "info": "info", "notice": "info", "warning": "warning", "warn": "warning",
    "error": "error", "critical": "critical", "fatal": "critical",
}  # fmt: skip
_HEAD_CHARS: Final = 120
# Upper case, or a field of a structured line: the word "error" in a sentence says nothing about the line.
_UPPER: Final = re.compile(r"(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b")
_FIELD: Final = re.compile(r'\blevel(?:name)?"?\s*[=:]\s*"?(\w+)', re.IGNORECASE)
# How Python ends a program: the head of a traceback, and the exception at its foot.
_TRACEBACK: Final = "Traceback (most recent call last)"
_RAISED: Final = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)(?::|$)")
_WARNED: Final = re.compile(r"\S+:\d+: \w*Warning: ")
# What `level_of` goes by, looked for in many lines at once: four capitals in a row, and these.
_AS_CAPITALS: Final = bytes(65 if 65 <= code <= 90 else 32 for code in range(256))
_CAPITALS: Final = b"AAAA"
_CAPITAL: Final = b"A"
_CAPITALIZED: Final = (b"Traceback", b"Error", b"Exception", b"Warning: ")


def level_of(text: str) -> str:
    """The level that a line names, one of `LEVELS`; empty where it names none.

    Asked of every line that is shipped: what nearly no line has is looked for by a plain search first.
    """
    head = text[:_HEAD_CHARS]
    if (
        ("evel" in head or "EVEL" in head)
        and (field := _FIELD.search(head))
        and (known := _NAMES.get(field[1].lower()))
    ):
        return known
    for found in _UPPER.finditer(head):
        # That a word begins there is seen afterwards: asked for first, it makes the search ten times as long.
        if not (before := head[found.start() - 1 : found.start()]) or not (before.isalnum() or before == "_"):
            return _NAMES[found[0].lower()]
    if _TRACEBACK in head or (("Error" in head or "Exception" in head) and _RAISED.match(head)):
        return "error"
    return "warning" if "Warning: " in head and _WARNED.match(head) else ""


def none_names_a_level(lines: bytes) -> bool:
    """Whether surely none of these lines names a level: `level_of` need not be asked then."""
    if b"evel" in lines:
        return False
    capitals = lines.translate(_AS_CAPITALS)
    # Many programs write none at all, and one is found at once where there are many.
    return _CAPITAL not in capitals or not (_CAPITALS in capitals or any(sign in lines for sign in _CAPITALIZED))


def at_least(level: str) -> tuple[str, ...]:
    """This level and the graver ones; all where it is empty.

    Raises:
        ValueError: it is none of `LEVELS`.
    """
    if not level:
        return ()
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    return LEVELS[LEVELS.index(level) :]
