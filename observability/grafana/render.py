"""All dashboards as the files that Grafana reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from observability.grafana.checkpoint import CHECKPOINT
from observability.grafana.cluster import CLUSTER
from observability.grafana.job import JOB
from observability.grafana.panels import dashboard
from observability.grafana.services import SERVICES

FOLDER: Final = Path(__file__).parent / "dashboards"
PAGES: Final = (CLUSTER, JOB, CHECKPOINT, SERVICES)


def rendered() -> dict[str, str]:
    """Text by file name; the same at each call, so that a change shows as one."""
    return {
        f"{page.uid}.json": json.dumps(dashboard(page), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for page in PAGES
    }
