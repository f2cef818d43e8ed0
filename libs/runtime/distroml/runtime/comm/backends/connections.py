"""The sockets that a process group opened, so that they can be cut from another thread.

Neither `abort()` nor `shutdown()` of a Gloo group frees a thread that waits for a peer which is stopped or cut off:
only the end of the connection does. The sockets are found by comparing this process's open files before and after
the set-up, and are shut down, not closed: Gloo keeps its own descriptors and sees an ordinary end of stream.
"""

from __future__ import annotations

import os
import socket
import stat
import threading

_SELF_FDS = "/proc/self/fd"


def _open_sockets() -> dict[int, int]:
    """Inode by descriptor of every socket open now; empty where the system does not tell."""
    found: dict[int, int] = {}
    try:
        names = os.listdir(_SELF_FDS)
    except OSError:
        return found
    for name in names:
        try:
            status = os.stat(f"{_SELF_FDS}/{name}")
        except OSError:
            continue  # closed meanwhile
        if stat.S_ISSOCK(status.st_mode):
            found[int(name)] = status.st_ino
    return found


def _shut(descriptor: int, inode: int) -> None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            # Asked of the copy, which nobody else closes: the number may be another file's at any moment.
            if os.fstat(connection.fileno()).st_ino == inode and connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.getpeername()  # a listening socket is left alone: Gloo dies of an error in accept()
                connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed meanwhile, no socket any more, or never connected


class Connections:
    """The internet sockets that were opened between construction and `complete()` (or now, before it).

    `extend()` and the next `complete()` enclose a later set-up, of further groups.
    """

    def __init__(self) -> None:
        self._before = set(_open_sockets().items())
        self._lock = threading.Lock()
        self._known: set[tuple[int, int]] = set()
        self._mine: set[tuple[int, int]] | None = None

    def complete(self) -> None:
        """The set-up is done: sockets that open from here on are not ours."""
        with self._lock:
            self._mine = self._opened()

    def extend(self) -> None:
        """More connections are made from here on: they, too, are ours."""
        with self._lock:
            self._known, self._mine = self._opened(), None
            self._before = set(_open_sockets().items())

    def _opened(self) -> set[tuple[int, int]]:
        return self._known | (self._mine if self._mine is not None else set(_open_sockets().items()) - self._before)

    def sever(self) -> None:
        """End all connections: whoever waits on them gets an error at once, here and at the peers. Repeatable."""
        with self._lock:
            mine = self._opened()
        for descriptor, inode in mine:
            _shut(descriptor, inode)
