"""Servers that live as long as this process, and print here what they log: for whoever watches over processes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from deploy.stack.running import Running
from deploy.stack.server import StackError

_POLL_S = 0.1


@contextmanager
def ending() -> Generator[threading.Event]:
    """An event that SIGTERM or SIGINT sets within the block, instead of ending the process."""
    told = threading.Event()
    before = {
        number: signal.signal(number, lambda _number, _frame: told.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(begun: Sequence[Running], told: threading.Event) -> None:
    """Print the servers' logs until told to end, then end them, the last to start first.

    Raises:
        StackError: one of them ended by itself; the others are ended, too.
    """
    seen = {number: one.log_before for number, one in enumerate(begun)}
    try:
        while not told.wait(_POLL_S):
            for number, one in enumerate(begun):
                seen[number] = _print_more(one, seen[number])
                if (code := one.process.poll()) is not None:
                    raise StackError(f"{one.server.name} ended by itself, with status {code}; see {one.folder / 'log'}")
    finally:
        for one in reversed(begun):
            one.stop()


def _print_more(one: Running, seen_bytes: int) -> int:
    """Print what the log has beyond what was seen; returns what is seen then."""
    with (one.folder / "log").open("rb") as log:
        log.seek(seen_bytes)
        more = log.read()
    if more:
        sys.stdout.write(more.decode(errors="replace"))
        sys.stdout.flush()
    return seen_bytes + len(more)
