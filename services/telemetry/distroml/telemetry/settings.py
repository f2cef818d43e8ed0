"""Telemetry's settings; the environment is read here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    """Jobs with samples and logs; of older ones that ended only the view stays."""
    pending_records: int = 50_000
    """Records waiting to be written."""
    pending_bytes: int = 64 * 1024 * 1024
    """Bytes waiting to be written."""
    labelled_jobs: int = 50
    """Jobs with a Prometheus label of their own."""
    label_ttl_s: int = 3600
    """Seconds without a sample after which a job's label goes."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardSettings:
    """Where the dashboard listens. Anything but a loopback address is refused."""

    host: str = "127.0.0.1"
    port: int = 0
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> DashboardSettings:
        """Read `DISTROML_DASHBOARD_LISTEN` (host:port, default 127.0.0.1 and a free port).

        Raises:
            ValueError: the value is no loopback host:port.
        """
        text = environ.get("DISTROML_DASHBOARD_LISTEN", "127.0.0.1:0")
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        if host not in ("127.0.0.1", "localhost", "::1") or not port.isdigit() or int(port) > 65535:
            raise ValueError(
                f"DISTROML_DASHBOARD_LISTEN={text!r} is no loopback address; the dashboard shows logs and code, so it "
                "binds to this machine only: give 127.0.0.1:PORT and reach it from elsewhere through an SSH tunnel"
            )
        return cls(host=host, port=int(port))
