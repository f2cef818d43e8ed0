"""Where other programs show more of a job."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

GRAFANA_JOB: Final = "distroml-job"
"""The dashboard's uid, as observability/grafana gives it."""


def grafana_page(grafana_url: str, job: str) -> str:
    """Where Grafana shows a job; empty where there is no Grafana."""
    return f"{grafana_url.rstrip('/')}/d/{GRAFANA_JOB}?{urlencode({'var-job_id': job})}" if grafana_url else ""
