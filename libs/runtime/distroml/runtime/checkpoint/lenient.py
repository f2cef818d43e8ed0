"""What a checkpoint may lack, and what only one rank saved: made ready for a load that otherwise wants all to fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import cast

import torch

from distroml.manifest import Manifest, TensorEntry
from distroml.runtime.checkpoint.tensors import dtype_of
from distroml.runtime.checkpoint.tree import Path


def drop_unsaved(state: MutableMapping[str, object], keys: Collection[str], manifest: Manifest) -> None:
    """Take out of the dicts at `keys` of `state` what the checkpoint does not have; a dict that gets empty, too."""
    saved = {entry.path[:2] for entry in manifest.entries}
    for key in keys:
        values = cast("Mapping[str, object]", state.pop(key, {}))
        if kept := {name: value for name, value in values.items() if (key, name) in saved}:
            state[key] = kept


def as_saved(manifest: Manifest, path: Path) -> dict[str | int, object]:
    """The nested dict that the checkpoint has at `path`, with tensors still to be filled; empty where it has none."""
    found: dict[str | int, object] = {}
    for entry in manifest.entries:
        if entry.path[: len(path)] != path or len(entry.path) == len(path):
            continue
        inner = found
        for key in entry.path[len(path) : -1]:
            inner = cast("dict[str | int, object]", inner.setdefault(key, {}))
        empty = torch.empty(entry.shape, dtype=dtype_of(entry.dtype)) if isinstance(entry, TensorEntry) else None
        inner.setdefault(entry.path[-1], empty)
    return found
