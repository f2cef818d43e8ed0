"""Prometheus, with `promtool` beside it: scrapes what files name, under our rules.

The files are `targets/*.json` in its folder, where each control plane writes one whose environment names that folder,
and what `distroml up` writes into the default data folder. A configuration that lies in its folder is kept; rules are
replaced by the tree's at each start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploy.stack import health
from deploy.stack.install import debian, libraries
from deploy.stack.server import Launch

OURS: Final = Path(__file__).resolve().parents[2] / "observability" / "prometheus"
"""The configuration and rules of the source tree."""
_TARGETS: Final = "targets/*.json"


def told_where(folder: Path) -> Mapping[str, str]:
    """For control planes: where to say what is to be scraped, for the Prometheus whose folder this is."""
    return {"DISTROML_PROMETHEUS_TARGETS": str(folder.absolute() / "targets")}


class Prometheus:
    """`Server` for one Prometheus."""

    name = "prometheus"
    version = "2.42"
    ports = ("client",)

    def install(self, cache: Path) -> Path:
        """Debian 12's package, taken apart; `promtool` beside it."""
        return debian(cache, self.name, self.version, "prometheus") / "usr" / "bin"

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process over `folder`."""
        (folder / "targets").mkdir(exist_ok=True)
        shutil.copytree(OURS / "rules", folder / "rules", dirs_exist_ok=True)
        configuration = folder / "prometheus.yml"
        if not configuration.exists():
            data = Path(os.environ.get("DISTROML_DATA") or Path.home() / ".distroml").absolute()
            files = f"{_TARGETS}, {data}/prometheus/*.json"
            configuration.write_text((OURS / "prometheus.yml").read_text("utf-8").replace(_TARGETS, files))
        return Launch(
            command=(
                *(str(programs / "prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                *("--web.enable-lifecycle", f"--web.listen-address=127.0.0.1:{ports['client']}"),
            ),
            environment=libraries(programs.parent.parent),
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether it answers queries."""
        return health.answers_http(ports["client"], "/-/ready")

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where it is asked."""
        return {"DISTROML_PROMETHEUS": f"http://127.0.0.1:{ports['client']}"}
