"""What the agent is told from outside; the only place here that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from distroml.logstore.settings import ElasticSettings
from distroml.rpc import ServiceSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class AgentSettings(ServiceSettings):
    """Each own field is read from `DISTROML_AGENT_<NAME>`; the number of slots from `DISTROML_SLOTS`, too."""

    slots: int = 0
    """CPU slots this node offers; 0 for one per GPU, or one per core that it may use where there is no GPU."""
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
    kept_attempts: int = 20
    """Ended attempts whose folders (code, output) stay on this node."""
    log_bytes_per_s: int = 1_000_000
    """What this node ships of its workers' output, on average; the rest stays in their files and is counted. With 0
    nothing is shipped, and the files are not read."""
    log_nice: int = 19
    """How far the process that ships them stands back behind training: 0 for not at all, to 19 for whatever CPU time
    nobody else wants."""
    log_buffer_bytes: int = 64 << 20
    """Lines that wait while the log store is away; past that the oldest are dropped and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_bytes_per_s < 0 or self.log_buffer_bytes < 1:
            raise SettingsError(
                ["DISTROML_AGENT_LOG_BYTES_PER_S (0 for none) and _LOG_BUFFER_BYTES (1 or more) are numbers of bytes"]
            )
        if not 0 <= self.log_nice <= 19:
            raise SettingsError([f"DISTROML_AGENT_LOG_NICE={self.log_nice}: expected a number from 0 to 19"])

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


def log_store(settings: AgentSettings) -> ElasticSettings | None:
    """Where lines go besides telemetry, from this process's environment; None where nobody said so.

    Raises:
        SettingsError: names everything that is wrong.
    """
    try:
        return ElasticSettings.read(os.environ, settings.deployment)
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def own_environment() -> dict[str, str]:
    """What workers inherit from, before the private part is taken out."""
    return dict(os.environ)


def host_name() -> str:
    """For people: the node's label `host`."""
    return socket.gethostname()
