"""The source text of the running Python's standard library, as bytes, with whole files held out."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

# Every tenth file, by a hash of its name: the split stays when files are added.
_HELD_OUT_OF = 10
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Two runs of bytes, and a hash that names them."""

    train: torch.Tensor
    held_out: torch.Tensor
    files: int
    fingerprint: str


def _held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT_OF == 0


def _source_names(root: Path) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _SKIPPED]
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in files if name.endswith(".py"))


def read_corpus(root: Path | None = None) -> Corpus:
    """All `.py` files of the standard library in the order of their names.

    Raises:
        FileNotFoundError: this Python has no source files of its standard library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = sorted(_source_names(root))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    digest = hashlib.sha256()
    for name in names:
        text = (root / name).read_bytes()
        digest.update(f"{name}:{len(text)}:".encode() + hashlib.sha256(text).digest())
        parts[_held_out(name)].append(text)
    if not parts[True] or not parts[False]:
        raise FileNotFoundError(f"no Python sources below {root}: is the standard library installed without them?")
    train, held_out = (
        torch.frombuffer(bytearray(b"\n".join(parts[held])), dtype=torch.uint8) for held in (False, True)
    )
    return Corpus(train, held_out, len(names), digest.hexdigest()[:16])


class Windows:
    """A run of bytes cut into windows of `context + 1` that overlap by one: each byte is predicted once."""

    def __init__(self, text: torch.Tensor, context: int, limit: int | None = None) -> None:
        self._text = text
        self._context = context
        whole = (len(text) - 1) // context
        if whole < 1:
            raise ValueError(f"{len(text)} bytes do not fill a window of {context + 1}")
        self._count = min(whole, limit or whole)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self._context
        return self._text[start : start + self._context + 1]
