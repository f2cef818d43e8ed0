"""Named places where a crash test can end the process; nothing happens unless `DISTROML_FAILPOINT` is set.

`DISTROML_FAILPOINT=NAME:kill[:NTH]` sends SIGKILL to this process at the NTH (default first) passage of NAME, so
that no handler runs and no buffer is flushed, as when the machine's memory killer strikes.
`NAME:stop[:NTH]` sends SIGSTOP instead. `NAME:count` only counts; `hits()` tells how often.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "DISTROML_FAILPOINT"
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "count": None}


class _Failpoint:
    """One armed failpoint and how often it was passed."""

    def __init__(self, spec: str) -> None:
        name, _, rest = spec.partition(":")
        action, _, nth = rest.partition(":")
        if not name or action not in _SIGNALS or not (nth or "1").isdigit():
            raise ValueError(f"{VARIABLE}={spec!r}: expected NAME:kill[:NTH], NAME:stop[:NTH] or NAME:count")
        self._name, self._signal, self._nth = name, _SIGNALS[action], int(nth or 1)
        self.hits = 0

    def hit(self, name: str) -> None:
        if name != self._name:
            return
        self.hits += 1
        if self._signal is not None and self.hits == self._nth:
            os.kill(os.getpid(), self._signal)


def _nothing(name: str) -> None:
    del name


# Read once at import: a production process pays one call of an empty function per passage and nothing else.
_armed = _Failpoint(spec) if (spec := os.environ.get(VARIABLE, "")) else None

hit: Callable[[str], None] = _armed.hit if _armed else _nothing
"""Pass the failpoint of this name."""


def hits() -> int:
    """How often the armed failpoint was passed; 0 where none is armed."""
    return _armed.hits if _armed else 0
