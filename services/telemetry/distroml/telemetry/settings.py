"""Telemetry's settings; the environment is read here and nowhere else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from distroml.rpc import ServiceSettings, SettingsError
from distroml.rpc.settings import is_loopback, split_address

DASHBOARD_LISTEN = "DISTROML_DASHBOARD_LISTEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is kept; everything past it is dropped, oldest first, and counted."""

    log_lines: int = 50_000
    """Lines kept per job."""
    log_bytes: int = 16 * 1024 * 1024
    """Bytes of text kept per job."""
    line_bytes: int = 16 * 1024
    """Bytes of one line; the rest is cut off and said."""
    events: int = 5_000
    """Events kept per job for the job page; the log keeps all."""
    spans: int = 5_000
    """Spans kept per job."""
    ranks: int = 64
    """Ranks of a job with a history of their own; higher ones show their newest values only."""
    jobs: int = 2_000
    """Ended jobs with samples and logs; of older ones only the view and its events stay."""
    pending_records: int = 50_000
    """Records waiting to be written."""
    pending_bytes: int = 64 * 1024 * 1024
    """Bytes waiting to be written."""
    labelled_jobs: int = 50
    """Jobs with a Prometheus label of their own."""
    label_ttl_s: int = 3600
    """Seconds without a sample after which a job's label goes."""


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings(ServiceSettings):
    """What telemetry is told from outside. `Limits` are read from `DISTROML_TELEMETRY_LOG_LINES` and so on."""

    dashboard_listen: str = "127.0.0.1:0"
    """host:port of the dashboard (`DISTROML_DASHBOARD_LISTEN`); this machine only, port 0 takes a free one."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            host, _ = split_address(self.dashboard_listen)
        except ValueError as error:
            raise SettingsError([f"{DASHBOARD_LISTEN}={self.dashboard_listen!r}: {error}"]) from None
        if not is_loopback(host):
            raise SettingsError(
                [
                    f"{DASHBOARD_LISTEN}={self.dashboard_listen!r} is not on this machine's loopback; the dashboard "
                    "shows logs unencrypted: give 127.0.0.1:PORT and reach it from elsewhere through an SSH tunnel"
                ]
            )

    @classmethod
    def read(cls, environ: Mapping[str, str], service: str) -> Self:
        """As `ServiceSettings.read`, with the dashboard's address and the limits.

        Raises:
            SettingsError: names what is wrong.
        """
        settings = super().read(environ, service)
        problems: list[str] = []
        values: dict[str, int] = {}
        for limit in dataclasses.fields(Limits):
            name = f"DISTROML_TELEMETRY_{limit.name.upper()}"
            if text := environ.get(name):
                if text.isascii() and text.isdigit() and int(text) > 0:
                    values[limit.name] = int(text)
                else:
                    problems.append(f"{name}={text!r}: expected a whole number, at least 1")
        if problems:
            raise SettingsError(problems)
        listen = environ.get(DASHBOARD_LISTEN) or settings.dashboard_listen
        return dataclasses.replace(settings, dashboard_listen=listen, limits=Limits(**values))


def read_settings() -> TelemetrySettings:
    """The settings of this process."""
    return TelemetrySettings.read(os.environ, "telemetry")


def keep_storage_in(folder: Path) -> None:
    """Tell NiceGUI, which reads it when it is imported, where its files go."""
    os.environ["NICEGUI_STORAGE_PATH"] = str(folder)
