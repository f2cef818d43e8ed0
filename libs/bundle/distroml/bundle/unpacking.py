"""Unpack a code bundle without trusting it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from distroml.bundle.errors import BundleError

MAX_UNPACKED_BYTES = 1024 * 1024 * 1024
MAX_FILES = 100_000


def unpack(archive: Path, destination: Path, *, sha256: str, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Unpack `archive` so that `destination` appears whole or not at all.

    Plain files and folders only: a link, a device, an absolute name or one that climbs out is refused. An existing
    `destination` counts as unpacked before.

    Raises:
        BundleError: the hash differs, the archive is damaged or hostile, or it is larger than `max_bytes` unpacked.
    """
    if destination.exists():
        return
    actual = _sha256(archive)
    if actual != sha256:
        raise BundleError(
            f"the bundle's bytes have the hash {actual[:12]}…, not {sha256[:12]}…: it was damaged on the way"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=destination.parent))
    try:
        _extract(archive, scratch, max_bytes)
        os.chmod(scratch, 0o755)
        try:
            scratch.rename(destination)
        except OSError:
            # Another process was faster: the content is the same by its hash.
            if not destination.exists():
                raise
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise BundleError(f"cannot unpack the bundle {sha256[:12]}…: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(archive: Path, into: Path, max_bytes: int) -> None:
    total = 0
    with tarfile.open(archive, "r:gz") as tar:
        for count, member in enumerate(tar):
            name = PurePosixPath(member.name)
            if not member.isreg() and not member.isdir():
                raise BundleError(f"the bundle holds {member.name!r}, which is no plain file: refused")
            if name.is_absolute() or ".." in name.parts or not name.parts:
                raise BundleError(f"the bundle holds the path {member.name!r}, which leaves its folder: refused")
            total += member.size
            if total > max_bytes or count >= MAX_FILES:
                raise BundleError(f"the bundle unpacks to more than {max_bytes} bytes or {MAX_FILES} files: refused")
            target = into.joinpath(*name.parts)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None, "a regular member has content"
            with target.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)
