"""What the scheduler is told from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distroml.rpc import ServiceSettings


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings(ServiceSettings):
    """Each field is read from `DISTROML_SCHEDULER_<FIELD>`."""

    node_ttl_s: int = 30
    """A node without a heartbeat for this long is lost, seconds."""
    role_ttl_s: int = 3
    """Another replica takes over the cycle, the reactor or the judge after this long, seconds."""
    debounce_s: float = 0.02
    """Changes that come this close together are looked at in one cycle, seconds."""
    silence_s: float = 10.0
    """An attempt that all its agents stopped unasked is requeued if rendezvous does not close it in this time."""
    bundle_cap_bytes: int = 64 * 1024 * 1024
    """Largest code bundle."""
    max_unfinished: int = 10_000
    """Jobs that may be unfinished at once; more are refused."""
    finished_kept: int = 10_000
    """Finished jobs that lists show; older ones are found by their id."""


def read_settings() -> SchedulerSettings:
    """The settings of this process; raises `SettingsError`."""
    return SchedulerSettings.read(os.environ, "scheduler")
