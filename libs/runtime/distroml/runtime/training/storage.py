"""Where checkpoints go: the platform's object store, or a folder of a run that stands alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distroml.objectstore import ObjectStore
from distroml.objectstore.filesystem import open_object_store
from distroml.objectstore.location import open_location
from distroml.objectstore.memory import MemoryObjectStore
from distroml.runtime.training.catalogue import LocalCatalogue
from distroml.workerlink import environment


@dataclass(frozen=True, slots=True)
class Storage:
    """An object store, the job whose checkpoints it holds, and the catalogue where there is no service for it."""

    store: ObjectStore
    job: str
    catalogue: LocalCatalogue | None


def open_storage(
    environ: Mapping[str, str], *, attached: bool, wanted: bool, folder: str | os.PathLike[str] | None
) -> Storage:
    """The storage of this run; raises `ValueError` for a malformed location.

    Without an agent, and with no checkpoint `wanted`, nothing is written to disk.
    """
    location = environ.get(environment.OBJECTS, "")
    if attached and location:
        try:
            store = open_location(location)
        except ValueError as error:
            raise ValueError(f"{environment.OBJECTS}: {error}") from error
        return Storage(store, environ[environment.JOB], None)
    if not wanted:
        nowhere = MemoryObjectStore()
        return Storage(nowhere, "local", LocalCatalogue(nowhere, "local"))
    root = Path(folder) if folder is not None else Path(".distroml") / "runs" / (Path(sys.argv[0]).stem or "run")
    root.mkdir(parents=True, exist_ok=True)
    store = open_object_store(root)
    return Storage(store, "local", LocalCatalogue(store, "local"))
