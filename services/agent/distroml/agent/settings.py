"""What the agent is told from outside; the only place here that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from distroml.rpc import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class AgentSettings(ServiceSettings):
    """Each own field is read from `DISTROML_AGENT_<NAME>`; the number of slots from `DISTROML_SLOTS`, too."""

    slots: int = 0
    """CPU slots this node offers; 0 for one per GPU, or one per CPU where there is no GPU."""
    address: str = "127.0.0.1"
    """Where other nodes reach this one's workers and stores."""
    orphan_grace_s: float = 900.0
    """How long workers go on without an agent before their holders end them."""
    join_timeout_s: int = 30
    """How long a generation waits for stragglers beyond the minimum."""
    warm: bool = True
    """Keep a process with torch imported, so that workers start in milliseconds."""
    templates: int = 2
    """Warm processes at most; one of them serves jobs without special variables."""
    objects: str = ""
    """Where workers put checkpoints; empty for the data folder's `objects`."""
    kept_attempts: int = 20
    """Ended attempts whose folders (code, output) stay on this node."""

    @classmethod
    def read_agent(cls, environ: Mapping[str, str]) -> Self:
        """The agent's settings from `environ`."""
        if "DISTROML_SLOTS" in environ and "DISTROML_AGENT_SLOTS" not in environ:
            environ = {**environ, "DISTROML_AGENT_SLOTS": environ["DISTROML_SLOTS"]}
        return cls.read(environ, "agent")


def read_settings() -> AgentSettings:
    """From this process's environment.

    Raises:
        SettingsError: names everything that is missing or malformed.
    """
    return AgentSettings.read_agent(os.environ)


def own_environment() -> dict[str, str]:
    """What workers inherit from, before the private part is taken out."""
    return dict(os.environ)


def host_name() -> str:
    """For people: the node's label `host`."""
    return socket.gethostname()
