"""Where objects are, as one text that settings, agents and workers pass on: `file:///FOLDER` or `s3://BUCKET/PREFIX`."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from distroml.objectstore.filesystem import FilesystemObjectStore
from distroml.objectstore.port import ObjectStore, ObjectStoreRefused

CLAIM_S: Final = 5.0
"""For how long a server may be silent where a service that starts waits for it, seconds."""


def check_location(location: str) -> None:
    """Raise `ValueError` unless the location is one that `open_location` understands; nothing is opened."""
    if urlsplit(location).scheme == "s3":
        _s3().read_settings(location)
    else:
        _folder(location)


def open_location(location: str, *, deployment: str | None = None, silence_s: float | None = None) -> ObjectStore:
    """The store at a location.

    Args:
        location: see `distroml.objectstore.s3.settings` for what may follow `s3://`.
        deployment: what a bucket is claimed for, where a service opens it; a folder says itself whose it is.
        silence_s: for how long a server may be silent, twice at most, where somebody waits for the answer; else
            minutes pass before a checkpoint is given up.

    Raises:
        ValueError: the location is malformed.
        ObjectStoreRefused: the server will not serve us, or its client is not installed.
        ObjectStoreDown: no answer.
    """
    if urlsplit(location).scheme != "s3":
        return FilesystemObjectStore(_folder(location))
    return _s3().open_object_store(_settings(location, silence_s), deployment=deployment)


def open_claimed(
    location: str, deployment: str, *, claim_s: float = CLAIM_S, silence_s: float | None = None
) -> ObjectStore:
    """The store at a location, after it became known to be a deployment's; a server has little time to say so.

    Args:
        location: see `open_location`.
        deployment: what a bucket is claimed for; a folder says itself whose it is.
        claim_s: for how long a server may be silent, twice at most, while it is asked.
        silence_s: the same for all calls afterwards; see `open_location`.

    Raises:
        As `open_location`.
    """
    if urlsplit(location).scheme != "s3":
        return FilesystemObjectStore(_folder(location))
    s3 = _s3()
    s3.open_object_store(_settings(location, claim_s), deployment=deployment).close()
    return s3.S3ObjectStore(_settings(location, silence_s))


def survey_location(location: str, deployment: str | None) -> None:
    """Look whether a deployment's objects can be there; writes nothing, and raises what `open_location` does."""
    if urlsplit(location).scheme == "s3":
        store = _s3().S3ObjectStore(_settings(location, 5.0))
        try:
            store.bucket.check(deployment)
        finally:
            store.close()
    else:
        _folder(location)


def http_of(location: str) -> tuple[str, ssl.SSLContext | None] | None:
    """The server of a location and whom to trust for TLS; None for a folder. Raises as `open_location`."""
    if urlsplit(location).scheme != "s3":
        return None
    settings = _s3().read_settings(location)
    return settings.endpoint, ssl.create_default_context(cafile=settings.ca_file) if settings.secure else None


def _settings(location: str, silence_s: float | None):
    settings = _s3().read_settings(location)
    return settings if silence_s is None else replace(settings, retries=1, read_timeout_s=silence_s)


def _folder(location: str) -> Path:
    parts = urlsplit(location)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise ValueError(f"{location!r} is no place for objects: expected file:///FOLDER or s3://BUCKET/PREFIX")
    return Path(unquote(parts.path))


def _s3():
    # Most processes never need it, and many do not have its client.
    try:
        from distroml.objectstore import s3
    except ModuleNotFoundError as error:
        raise ObjectStoreRefused(
            f"objects in s3:// need the package {error.name}, which is not installed: pip install 'distroml[stack]'"
        ) from error
    return s3
