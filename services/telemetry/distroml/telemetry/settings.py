"""Telemetry's settings; the environment is read here and nowhere else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from distroml.logstore.settings import ElasticSettings
from distroml.rpc import ServiceSettings, SettingsError
from distroml.rpc.postgres import POSTGRES, PostgresUnfit, place_of
from distroml.rpc.settings import is_loopback, split_address
from distroml.telemetry.domain.usage import Price

DASHBOARD_LISTEN = "DISTROML_DASHBOARD_LISTEN"
JAEGER_UI = "DISTROML_JAEGER_UI"
PRICE = "DISTROML_SLOT_HOUR_PRICE"
GRAFANA_URL = "DISTROML_GRAFANA_URL"


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
    rollup_rows: int = 100_000
    """Rows of roll-ups waiting to be put into history."""
    fine_days: int = 2
    """Days for which roll-ups of 10 s are kept in history."""
    middle_days: int = 30
    """Days for those of 5 minutes."""
    coarse_days: int = 1095
    """Days for those of an hour."""
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
    """host:port of the dashboard (`DISTROML_DASHBOARD_LISTEN`); port 0 takes a free one. With `expose` it may
    be another than loopback's, as in a container, but it answers under loopback's names only."""
    jaeger_ui: str = ""
    """Where people look at traces, `http://HOST:PORT` (`DISTROML_JAEGER_UI`); empty for no links."""
    grafana_url: str = ""
    """Where people look at Grafana, `http://HOST:PORT` (`DISTROML_GRAFANA_URL`); empty for no links."""
    limits: Limits = field(default_factory=Limits)
    log_store: ElasticSettings | None = None
    """Where lines are searched; the embedded store where it is None (`DISTROML_ELASTICSEARCH`)."""
    log_retention_s: int = 30 * 24 * 3600
    """How long lines stay in Elasticsearch (`DISTROML_TELEMETRY_LOG_RETENTION_S`), seconds."""
    postgres: str = field(default="", repr=False)
    """Where history is (`DISTROML_POSTGRES`), with the password perhaps; empty for a file in the data folder."""
    price: Price | None = None
    """What a slot costs an hour (`DISTROML_SLOT_HOUR_PRICE`, such as `2.40 EUR`); without it costs have no money."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            host, _ = split_address(self.dashboard_listen)
        except ValueError as error:
            raise SettingsError([f"{DASHBOARD_LISTEN}={self.dashboard_listen!r}: {error}"]) from None
        if self.jaeger_ui and not self.jaeger_ui.startswith(("http://", "https://")):
            raise SettingsError([f"{JAEGER_UI}={self.jaeger_ui!r}: expected http://HOST:PORT or https://..."])
        if self.grafana_url and not self.grafana_url.startswith(("http://", "https://")):
            raise SettingsError([f"{GRAFANA_URL}={self.grafana_url!r}: expected http://HOST:PORT or https://..."])
        if not is_loopback(host) and not self.expose:
            raise SettingsError(
                [
                    f"{DASHBOARD_LISTEN}={self.dashboard_listen!r} is not on this machine's loopback; the dashboard "
                    "shows logs unencrypted: give 127.0.0.1:PORT and reach it from elsewhere through an SSH tunnel, "
                    "or set DISTROML_EXPOSE=1 in a network that you trust"
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
        if settings.log_retention_s < 60:
            problems.append("DISTROML_TELEMETRY_LOG_RETENTION_S is a number of seconds, 60 or more")
        store = price = None
        try:
            store = ElasticSettings.read(environ, settings.deployment)
        except ValueError as error:
            problems.append(str(error))
        if text := environ.get(PRICE):
            try:
                price = Price.parse(text)
            except ValueError as error:
                problems.append(f"{PRICE}={text!r}: {error}")
        address = environ.get(POSTGRES, "")
        if address:
            try:
                place_of(address)
            except PostgresUnfit as error:
                problems.append(str(error))
            except ImportError:
                problems.append(f"{POSTGRES} is set and psycopg is not installed: pip install 'distroml[stack]'")
        if problems:
            raise SettingsError(problems)
        return dataclasses.replace(
            settings,
            dashboard_listen=environ.get(DASHBOARD_LISTEN) or settings.dashboard_listen,
            jaeger_ui=environ.get(JAEGER_UI, ""),
            grafana_url=environ.get(GRAFANA_URL, ""),
            limits=Limits(**values),
            log_store=store,
            postgres=address,
            price=price,
        )


def read_settings() -> TelemetrySettings:
    """The settings of this process."""
    return TelemetrySettings.read(os.environ, "telemetry")


def keep_storage_in(folder: Path) -> None:
    """Tell NiceGUI, which reads it when it is imported, where its files go."""
    os.environ["NICEGUI_STORAGE_PATH"] = str(folder)
