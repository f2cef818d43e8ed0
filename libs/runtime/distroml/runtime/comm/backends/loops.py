"""Waits until Gloo's own threads have let go of what the last collectives moved.

A group that something still refers to keeps its threads when it is destroyed. One of them that drops its last tensor
only while the interpreter ends cannot get the interpreter's lock any more, and ends the process with SIGABRT, after all
its work was done (torch issue 190489).
"""

from __future__ import annotations

import os
import time

_TASKS = "/proc/self/task"
_NAME = "pt_gloo_runloop"
_POLL_S = 0.001
# One that waits for the interpreter's lock sleeps as well, but gets it while this thread does.
_CALM_POLLS = 3


def settle(timeout_s: float = 1.0) -> bool:
    """Give Gloo's threads the time to end what they do; whether they did. True where the system has no /proc."""
    deadline = time.monotonic() + timeout_s
    calm = 0
    while calm < _CALM_POLLS:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
        calm = calm + 1 if _asleep() else 0
    return True


def _asleep() -> bool:
    try:
        tasks = os.listdir(_TASKS)
    except OSError:
        return True
    return all(state == "S" for task in tasks if (state := _state(task)) is not None)


def _state(task: str) -> str | None:
    """The state of a thread of Gloo, as in proc(5); None: it is another's, or gone."""
    try:
        with open(f"{_TASKS}/{task}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    # The name stands in parentheses and may contain any character.
    name, _, rest = text.partition("(")[2].rpartition(")")
    return rest.split()[0] if name == _NAME else None
