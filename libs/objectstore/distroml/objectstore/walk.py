"""Object keys as paths, and walking them in key order one folder at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_MARK = "@"


def parts_of(key: str) -> list[str]:
    """A key's parts as folder names; `@` marks objects and so is escaped."""
    return [part.replace("%", "%25").replace(_MARK, "%40") for part in key.split("/")]


def object_name(part: str) -> str:
    """The file name of an object whose last (escaped) part is this."""
    return part + _MARK


def objects_below(root: Path, prefix: str, after: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(key, entry) of objects whose keys start with `prefix` and sort after `after`, in key order."""
    head, slash, _ = prefix.rpartition("/")
    folder = root.joinpath(*parts_of(head)) if head else root
    if any(part in ("", ".", "..") for part in head.split("/")) and head:
        return
    yield from _walk(folder, head + slash, prefix, after)


def _walk(folder: Path, base: str, prefix: str, after: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            named = sorted(((base + _text(e.name), e) for e in entries), key=lambda pair: pair[0])
    except (FileNotFoundError, NotADirectoryError):
        return
    for key, entry in named:
        if not key.endswith("/"):
            if key.startswith(prefix) and key > after:
                yield key, entry
        # Every key in the folder starts with its name: it is passed over where all of them sort up to `after`.
        elif (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
            yield from _walk(Path(entry.path), key, prefix, after)


def _text(name: str) -> str:
    """The key's part for a file name; a folder's ends in `/`, which also sorts it where its keys belong."""
    text = name[:-1] if name.endswith(_MARK) else name + "/"
    return text.replace("%40", _MARK).replace("%25", "%")
