"""Make a code bundle: the same files always give the same bytes, so that its hash names the code."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distroml.bundle.errors import BundleError

if TYPE_CHECKING:
    import pathspec

DEFAULT_CAP_BYTES = 64 * 1024 * 1024
IGNORE_FILE = ".distromlignore"
ALWAYS_IGNORED = (
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    "venv/",
    ".tox/",
    "node_modules/",
    "__pycache__/",
    "*.py[co]",
    "*.egg-info/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".ipynb_checkpoints/",
    ".distroml/",
    ".DS_Store",
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A packed folder: the archive's path, its sha256 in hex, its size, and what was left out."""

    path: Path
    sha256: str
    size_bytes: int
    files: int
    skipped_links: tuple[str, ...]


def pack(root: Path, archive: Path, *, cap_bytes: int = DEFAULT_CAP_BYTES) -> Bundle:
    """Pack every file below `root` into a gzipped tar at `archive`.

    Patterns of a `.distromlignore` file (git's syntax) and the usual caches are left out. Times, owners and
    umask leave no trace. A link to a file inside `root` is packed as that file; other links are left out and told.

    Raises:
        BundleError: `root` is no folder, a file cannot be read, or the files exceed `cap_bytes` before packing.
    """
    if not root.is_dir():
        raise BundleError(f"{root} is not a folder; name the folder that holds the job's code with --bundle")
    import pathspec  # slow to import, and needed to pack only

    spec = pathspec.GitIgnoreSpec.from_lines([*ALWAYS_IGNORED, *_ignore_lines(root)])
    skipped: list[str] = []
    try:
        members = sorted(_walk(root.resolve(), spec, skipped))
        sizes = [(path.stat().st_size, name) for name, path in members]
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}; name it in {IGNORE_FILE}") from error
    total = sum(size for size, _ in sizes)
    if total > cap_bytes:
        largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in sorted(sizes, reverse=True)[:5])
        raise BundleError(
            f"the code below {root} is {total / 1e6:.1f} MB, more than the cap of {cap_bytes / 1e6:.0f} MB; "
            f"the largest files are {largest}. Name them in {IGNORE_FILE}, or give a smaller folder with --bundle"
        )
    try:
        with (
            archive.open("wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, path in members:
                _add(tar, name, path)
    except OSError as error:
        archive.unlink(missing_ok=True)
        raise BundleError(f"cannot pack {root}: {error}") from error
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Bundle(archive, digest, archive.stat().st_size, len(members), tuple(skipped))


def _ignore_lines(root: Path) -> list[str]:
    file = root / IGNORE_FILE
    try:
        return file.read_text("utf-8").splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {file}: {error}") from error


def _refuse(error: OSError) -> None:
    raise error


def _walk(root: Path, spec: pathspec.GitIgnoreSpec, skipped: list[str]) -> Iterator[tuple[str, Path]]:
    # A folder that cannot be listed is no empty one.
    for folder, folders, files in os.walk(root, onerror=_refuse):
        here = Path(folder)
        for name in list(folders):
            relative = (here / name).relative_to(root).as_posix()
            if spec.match_file(relative + "/"):
                folders.remove(name)
            elif (here / name).is_symlink():
                folders.remove(name)
                skipped.append(relative)
        for name in files:
            path = here / name
            relative = path.relative_to(root).as_posix()
            if spec.match_file(relative):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                skipped.append(relative)
            elif path.is_file():
                yield relative, path
            elif path.is_symlink():
                skipped.append(relative)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o755 if os.access(path, os.X_OK) else 0o644
    with path.open("rb") as file:
        tar.addfile(info, file)
