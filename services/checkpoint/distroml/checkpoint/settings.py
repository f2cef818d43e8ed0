"""What the checkpoint service is told from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distroml.checkpoint.domain.state import DEFAULT_KEEP, MAX_KEEP
from distroml.rpc import ServiceSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(ServiceSettings):
    """Settings of the checkpoint service."""

    keep: int = DEFAULT_KEEP
    """How many sound checkpoints of a job are kept where the job does not say (`DISTROML_CHECKPOINT_KEEP`)."""
    reactor_ttl_s: int = 6
    """After how many seconds another replica takes over from a silent one (`DISTROML_CHECKPOINT_REACTOR_TTL_S`)."""

    def __post_init__(self) -> None:
        """Raise `SettingsError` naming what is wrong."""
        super().__post_init__()
        problems: list[str] = []
        if not 1 <= self.keep <= MAX_KEEP:
            problems.append(f"keep is {self.keep}; it is between 1 and {MAX_KEEP}")
        if self.reactor_ttl_s < 1:
            problems.append(f"reactor_ttl_s is {self.reactor_ttl_s}; it is a whole number of seconds, at least 1")
        if problems:
            raise SettingsError(problems)


def read_settings() -> CheckpointSettings:
    """From the environment; raises `SettingsError`."""
    return CheckpointSettings.read(os.environ, "checkpoint")
