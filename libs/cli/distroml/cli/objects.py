"""The deployment's objects, where a command reads them itself."""

from __future__ import annotations

import os
from pathlib import Path

from distroml.cli.errors import CliError, UsageError
from distroml.cli.plane.datafolder import DataFolder
from distroml.cli.plane.elsewhere import named
from distroml.cli.plane.profile import OBJECTS, adopt
from distroml.objectstore import ObjectStore, ObjectStoreError
from distroml.objectstore.location import open_location


def location_of(data: Path) -> str:
    """Where the services have them: as the environment says that names a control plane, else as this folder's are told.

    Raises:
        UsageError: a part of the control plane, or the folder's servers, are not named.
    """
    environ = adopt(DataFolder(data)) if _is_here(data) else os.environ
    return environ.get(OBJECTS) or (data / "objects").as_uri()


def deployment_of(data: Path) -> str | None:
    """Whose they are; None where nobody says so. Raises `UsageError` as `location_of`."""
    return DataFolder(data).deployment() if _is_here(data) else os.environ.get("DISTROML_DEPLOYMENT") or None


def _is_here(data: Path) -> bool:
    return named(os.environ) is None and (data / "format.json").exists()


def open_objects(data: Path) -> ObjectStore:
    """The store of objects; raises `CliError`."""
    location = location_of(data)
    try:
        return open_location(location)
    except ValueError as error:
        raise UsageError(f"DISTROML_OBJECTS: {error}") from error
    except ObjectStoreError as error:
        raise CliError(f"cannot read objects: {error}", hint="`distroml doctor` looks at the store") from error
