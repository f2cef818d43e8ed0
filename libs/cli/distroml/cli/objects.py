"""The deployment's objects, where a command reads them itself."""

from __future__ import annotations

import os
from pathlib import Path

from distroml.cli.errors import CliError, UsageError
from distroml.cli.plane.datafolder import DataFolder
from distroml.cli.plane.profile import OBJECTS, adopt
from distroml.objectstore import ObjectStore, ObjectStoreError
from distroml.objectstore.location import open_location


def location_of(data: Path) -> str:
    """Where the services of this folder have them; raises `UsageError` where its servers are not named."""
    environ = adopt(DataFolder(data)) if (data / "format.json").exists() else os.environ
    return environ.get(OBJECTS) or (data / "objects").as_uri()


def open_objects(data: Path) -> ObjectStore:
    """The store of objects; raises `CliError`."""
    location = location_of(data)
    try:
        return open_location(location)
    except ValueError as error:
        raise UsageError(f"DISTROML_OBJECTS: {error}") from error
    except ObjectStoreError as error:
        raise CliError(f"cannot read objects: {error}", hint="`distroml doctor` looks at the store") from error
