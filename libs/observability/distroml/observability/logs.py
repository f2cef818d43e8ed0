"""Structured logs: one JSON object per line in the shape of ECS, bounded, with the ids of its trace and its job.

Names have dots instead of objects inside objects, as ECS' own specification for logs allows. Values of fields that only
one module knows are texts, numbers or yes and no.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from distroml.observability import names, trace

MAX_LINE_BYTES: Final = 16 * 1024
"""No line that a service logs is longer, its newline included; what is cut is counted in `truncated_bytes`."""

_FIELDS: Final = "distroml_fields"
_bound: ContextVar[Mapping[str, object]] = ContextVar("distroml_log_fields", default={})  # noqa: B039 - never mutated


@contextmanager
def bound(**fields: object) -> Generator[None]:
    """Every line logged inside carries these fields too."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


class Log:
    """A logger whose fields are keyword arguments: `log.info("placed", job=job, slots=4)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: object) -> None:
        """What only a developer of this code wants to see."""
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        """What an operator wants to find afterwards."""
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Something is wrong and was dealt with."""
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: object) -> None:
        """Something is wrong and somebody must look."""
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, message, fields, exc_info=True)

    def _log(self, level: int, message: str, fields: Mapping[str, object], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            # The text is an argument, so that a `%` in it is never a format.
            self._logger.log(level, "%s", message, extra={_FIELDS: fields}, exc_info=exc_info, stacklevel=3)


def logger(name: str) -> Log:
    """Make the log of a module: every module has one, named `log`."""
    return Log(name)


class JsonFormatter(logging.Formatter):
    """Records as JSON lines of at most `max_bytes`, whoever logged them."""

    def __init__(self, service: str, *, deployment: str = "", max_bytes: int = MAX_LINE_BYTES) -> None:
        super().__init__()
        self._fixed = {names.SERVICE: service} | ({names.DEPLOYMENT: deployment} if deployment else {})
        # The newline that the handler adds counts.
        self._max_bytes = max_bytes - 1

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record, without its newline."""
        line: dict[str, object] = {
            names.TIMESTAMP: datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            names.LEVEL: record.levelname.lower(),
            names.MESSAGE: record.getMessage(),
            names.ECS_VERSION: names.ECS,
            **self._fixed,
            names.LOGGER: record.name,
        }
        context = trace.current()
        if context is not None:
            line[names.TRACE_ID], line[names.SPAN_ID] = context.trace_id, context.span_id
        # A field's name is never one of those above, which the process itself says.
        for fields in (_bound.get(), getattr(record, _FIELDS, {})):
            line.update(_named(key, value) for key, value in fields.items())
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            line[names.ERROR_TYPE] = kind.__qualname__
            line.setdefault(names.ERROR_MESSAGE, _text(error))
            line[names.STACK_TRACE] = "".join(traceback.format_exception(*record.exc_info))
        text = _dump(line)
        return text if len(text) <= self._max_bytes else _cut(line, self._max_bytes, len(text))


def _named(word: str, value: object) -> tuple[str, object]:
    if word in names.FIELDS:
        # ECS has an object `error`: what is wrong is always its text.
        return names.FIELDS[word], _text(value) if word == names.ERROR else value
    # JSON has no word for infinity, and readers of JSON refuse Python's.
    plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return names.LABELS + word, value if plain else _text(value)


_ALWAYS: Final = (names.TIMESTAMP, names.LEVEL, names.MESSAGE, names.ECS_VERSION, names.SERVICE)


def _dump(line: Mapping[str, object]) -> str:
    # ASCII only: the number of characters is then the number of bytes, and lone surrogates are harmless.
    try:
        return json.dumps(line, ensure_ascii=True, default=str, separators=(",", ":"))
    except Exception:
        # A value may do anything when asked for its text; a log line must come of it all the same.
        return json.dumps({key: _text(value) for key, value in line.items()}, separators=(",", ":"))


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} without text: {type(error).__name__}>"


def _cut(line: dict[str, object], max_bytes: int, size: int) -> str:
    """Cut the longest texts to a common length, halved until the line fits."""
    limit = max_bytes // 2
    while limit >= 16:
        cut = {key: _shorten(value, limit) for key, value in line.items()}
        text = _dump(cut | {names.TRUNCATED: size - max_bytes})
        if len(text) <= max_bytes:
            return text
        limit //= 2
    # So many fields that none has room: only what every line has, each character at most 12 bytes long.
    kept = {key: _shorten(line[key], 24) for key in _ALWAYS}
    text = _dump(kept | {names.TRUNCATED: size - max_bytes})
    return text if len(text) <= max_bytes else _dump({**kept, names.MESSAGE: "", names.TRUNCATED: size - max_bytes})


def _shorten(value: object, limit: int) -> object:
    text = value if isinstance(value, str) else _dump({"": value})[4:-1]
    if len(text) <= limit:
        return value
    # The end of a traceback names the error: keep both ends.
    return text[: limit // 2] + " ... " + text[-limit // 2 :]
