"""Files of what was measured: written whole or not at all, and where that cannot be done it is measured again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def write_down(path: Path, data: bytes) -> None:
    """Put `data` at `path`, in place of what is there; where that cannot be done, a warning says so."""
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        log.warning("what was measured here is not kept, and will be measured again: %s; see $DISTROML_CACHE", error)
        discard(scratch)


def discard(path: Path) -> None:
    """Remove a file, where there is one and that can be done."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s is of no more use, but stays: %s", path, error)
