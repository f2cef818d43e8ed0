"""The one call by which a process sets up its logs."""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

from distroml.observability.logs import JsonFormatter

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def setup(service: str, *, deployment: str = "", level: str = "INFO", stream: TextIO | None = None) -> None:
    """Log JSON lines to standard error from now on, for this process and every library in it.

    Calling it again replaces what the last call set up.

    Args:
        service: the process' name in every line.
        deployment: id of the installation, in every line where given.
        level: one of `LEVELS`.
        stream: where to, standard error by default.

    Raises:
        ValueError: `level` is none of `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service, deployment=deployment))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # A full disk or a closed pipe must not turn a log line into an exception of the caller.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    # grpc and asyncio say too much at DEBUG to be of use together with ours.
    for noisy in ("asyncio", "grpc", "hpack"):
        logging.getLogger(noisy).setLevel("INFO" if level == "DEBUG" else level)
