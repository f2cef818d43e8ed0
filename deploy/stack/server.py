"""What the stack must know of a server to install it, start it and see that it is ready.

A server is a module of this package with a class of this form, and a line in `deploy.stack.registry`. Everything it
keeps lies below the one folder that `start` is given; it listens on loopback and on the given ports only.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class StackError(Exception):
    """A server could not be installed, started or ended; says which, why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a server's process is begun and asked to end."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to the starter's own."""
    stop_signal: signal.Signals = signal.SIGTERM
    """What makes it end in order and soon, also with clients connected."""


class Server(Protocol):
    """One kind of server at one pinned version."""

    @property
    def name(self) -> str:
        """A short word: it names folders, the command line's choice and the owner file's entry."""
        ...

    @property
    def version(self) -> str:
        """The version that `install` brings."""
        ...

    @property
    def ports(self) -> tuple[str, ...]:
        """Names of the ports that it listens on, the clients' first: `("client", "peer")`."""
        ...

    def install(self, cache: Path) -> Path:
        """The folder of its programs, brought below `cache` where it isn't there yet; raises `StackError`.

        Safe to be called by several processes at once; `deploy.stack.install` has what makes it so.
        """
        ...

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """What to run; configuration, and an empty data folder where there is none, are made below `folder`."""
        ...

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it serves now. Asked again and again: answers within a second, and raises nothing."""
        ...

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Environment variables by which our services find it."""
        ...
