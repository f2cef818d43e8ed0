"""What rendezvous is told from outside; the only place that reads the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distroml.rpc import ServiceSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class RendezvousSettings(ServiceSettings):
    """Settings of the rendezvous service."""

    member_ttl_s: int = 30
    """Seconds without a heartbeat after which a node is lost (`DISTROML_RENDEZVOUS_MEMBER_TTL_S`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.member_ttl_s <= 3600:
            raise SettingsError([f"member_ttl_s is {self.member_ttl_s}; it is a number of seconds from 1 to 3600"])


def read_settings() -> RendezvousSettings:
    """The settings of this process; raises `SettingsError`."""
    return RendezvousSettings.read(os.environ, "rendezvous")
