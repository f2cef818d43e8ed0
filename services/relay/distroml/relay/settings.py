"""What the relay is told from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distroml.rpc import ServiceSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class RelaySettings(ServiceSettings):
    """Each own field is read from `DISTROML_RELAY_<FIELD>`."""

    ttl_s: int = 5
    """Another replica takes over from a silent one after this long, seconds."""
    keep_bytes: int = 1 << 30
    """Past this size the oldest events leave JetStream; segments keep them."""
    replicas: int = 1
    """Of the stream, in a cluster of NATS."""
    reload_bytes: int = 64 << 20
    """How much of the sealed log at most is put into a stream that was lost."""
    seal_bytes: int = 4 << 20
    """A segment is written when so much is collected …"""
    seal_s: float = 15.0
    """… or this long after the first commit in it, seconds."""

    def __post_init__(self) -> None:
        """Raise `SettingsError` naming what is wrong."""
        super().__post_init__()
        least = {"ttl_s": 1, "keep_bytes": 1 << 20, "replicas": 1, "reload_bytes": 0, "seal_bytes": 1, "seal_s": 0}
        problems = [
            f"{name} is {getattr(self, name)}; it is {bound} or more"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if self.servers is None:
            problems.append(
                "neither DISTROML_ETCD_ENDPOINTS nor DISTROML_NATS_SERVERS is set: the relay goes between the two, and "
                "an embedded deployment needs none"
            )
        if problems:
            raise SettingsError(problems)


def read_settings() -> RelaySettings:
    """The settings of this process; raises `SettingsError`."""
    return RelaySettings.read(os.environ, "relay")
