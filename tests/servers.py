"""Every server of the stack on this machine, brought up as `make stack` does, for tests that share them."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.stack import Running, StackError, registry
from deploy.stack.__main__ import ENVIRONMENT, down, up
from distroml.cli.plane import profile


@dataclass(frozen=True)
class Servers:
    """What runs, by name; who ends one begins it again.

    Attributes:
        home: a shell that stands here has the servers of `make stack` without a word of its environment.
    """

    home: Path
    running: Mapping[str, Running]

    def told(self) -> dict[str, str]:
        """Every setting in the file that `make stack` writes for shells."""
        words = shlex.split((self.home / profile.FILE).read_text())
        return dict(word.split("=", 1) for word in words if "=" in word)

    def settings(self, *names: str) -> dict[str, str]:
        """What services are told of these servers."""
        return {key: value for name in names for key, value in _settings(self.running[name]).items()}


@contextmanager
def gone(server: Running) -> Generator[None]:
    """The block while the server is not there, as after a crash."""
    server.kill()
    try:
        yield
    finally:
        server.restart()


def _settings(one: Running) -> Mapping[str, str]:
    return one.server.settings(one.ports)


@contextmanager
def all_servers(home: Path) -> Generator[Servers]:
    """All of them with their data below `home`, ended with the block."""
    data = (home / profile.FILE).parent
    assert profile.FILE.name == ENVIRONMENT, "the command line reads what the stack writes"
    chosen = [registry.server(name) for name in registry.names() if name not in registry.SECOND]
    with pytest.MonkeyPatch.context() as environ:
        # Prometheus itself looks into the default data folder, which shall be nobody's.
        environ.setenv("DISTROML_DATA", str(home / "nobody"))
        try:
            begun = up(chosen, data)
        except StackError:
            down(chosen, data)
            raise
    try:
        yield Servers(home, {one.server.name: one for one in begun})
    finally:
        for one in reversed(begun):
            # Its data goes with it: an end in order would write it out first.
            one.kill()
