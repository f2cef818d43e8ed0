"""Tells a Prometheus where the services of this data folder have their metrics, by files that it reads by itself.

Their format is of Prometheus' file-based service discovery (`file_sd_configs`). A file is there while its control plane
is meant to run: a service that ends by itself is a target that does not answer. One is in the data folder; where
`DISTROML_PROMETHEUS_TARGETS` names a folder, as the environment of `make stack` does, one is there, too, beside those
of other control planes on this machine. What one that was killed has left there goes when another begins or ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from distroml.cli.plane.datafolder import DataFolder

FILE: Final = Path("prometheus/targets.json")
SHARED: Final = "DISTROML_PROMETHEUS_TARGETS"

_DATA: Final = "__distroml_data"
"""Label with the data folder: those that begin so are for whoever reads the file, and in no series."""


class Targets:
    """The files of one control plane."""

    def __init__(self, data: Path, deployment: str, environ: Mapping[str, str]) -> None:
        self._data, self._deployment = data, deployment
        shared = environ.get(SHARED, "")
        self._shared = Path(shared) if shared else None
        self._files = [data / FILE]
        if self._shared is not None:
            self._files.append(self._shared / f"{deployment}.json")

    def write(self, metrics: Mapping[str, str]) -> None:
        """Name every service's `host:port` of `/metrics`; each file is whole at any time.

        Raises:
            OSError: a folder cannot be written to.
        """
        labels = {"deployment": self._deployment, _DATA: str(self._data.absolute())}
        targets = [{"targets": [address], "labels": {"service": name, **labels}} for name, address in metrics.items()]
        for path in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Prometheus reads `*.json`: it must not see a half one.
            scratch = path.with_suffix(".new")
            scratch.write_text(json.dumps(targets, indent=1), "utf-8")
            scratch.replace(path)
        self._sweep()

    def forget(self) -> None:
        """Nothing is to be scraped any more."""
        for path in self._files:
            path.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what control planes have left that run no more."""
        for path in self._shared.glob("*.json") if self._shared is not None else ():
            # Somebody else's file, or one that goes at this moment.
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                data = json.loads(path.read_bytes())[0]["labels"][_DATA]
                if Path(data) == self._data.absolute():
                    continue
                # One that begins just now writes its file when it has the folder, and so after this.
                with DataFolder(Path(data)).kept_free() as free:
                    if free:
                        path.unlink()
