"""A nested state as named leaves: each tensor one leaf, each largest subtree without tensors one leaf."""

from __future__ import annotations

from collections.abc import Container, Mapping, MutableMapping
from dataclasses import dataclass
from typing import cast

import torch

from distroml.runtime.checkpoint.errors import UnsupportedState

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor, or a plain value, and its keys and list indices from the root."""

    path: Path
    value: object

    @property
    def fqn(self) -> str:
        """The path joined by dots."""
        return ".".join(map(str, self.path))


def flatten(state: Mapping[str, object], opened: Container[Path] = ()) -> dict[str, Leaf]:
    """Leaves by fully-qualified name, in the order of the names.

    A subtree at a path in `opened` is no leaf even without tensors: its children are.

    Sorted, because two ranks with the same state may hold its dicts in different orders (one restored, one built).

    Raises:
        UnsupportedState: two leaves have the same name, or a key is neither text nor a number.
    """
    leaves: dict[str, Leaf] = {}
    for leaf in _walk((), state, opened):
        if leaf.fqn in leaves:
            raise UnsupportedState(leaf.fqn, f"{leaves[leaf.fqn].path} and {leaf.path} both have this name")
        leaves[leaf.fqn] = leaf
    return dict(sorted(leaves.items()))


def replace_at(state: MutableMapping[str, object], path: Path, value: object) -> None:
    """Put a loaded plain value where its leaf was found."""
    container: object = state
    for key in path[:-1]:
        container = cast("MutableMapping[str | int, object]", container)[key]
    cast("MutableMapping[str | int, object]", container)[path[-1]] = value


def _walk(path: Path, value: object, opened: Container[Path]) -> list[Leaf]:
    if isinstance(value, torch.Tensor):
        return [Leaf(path, value)]
    children: list[tuple[object, object]]
    if isinstance(value, Mapping):
        children = list(cast("Mapping[object, object]", value).items())
    elif isinstance(value, list | tuple):
        children = list(enumerate(cast("list[object]", value)))
    else:
        return [Leaf(path, value)]
    leaves = [leaf for key, child in children for leaf in _walk((*path, cast("str | int", key)), child, opened)]
    odd = [key for key, _ in children if not isinstance(key, str | int)]
    if path in opened or any(_is_tensor(leaf) for leaf in leaves):
        if odd:
            raise UnsupportedState(
                ".".join(map(str, path)), f"beside tensors it has the key {odd[0]!r}, which is no text"
            )
        if isinstance(value, tuple) and any(
            len(leaf.path) == len(path) + 1 and not _is_tensor(leaf) for leaf in leaves
        ):
            # Loading replaces plain values where they lie, and a tuple does not let itself be changed.
            raise UnsupportedState(".".join(map(str, path)), "a tuple of tensors and plain values; use a list")
        return leaves
    return [Leaf(path, cast(object, value))] if path else leaves


def _is_tensor(leaf: Leaf) -> bool:
    return isinstance(leaf.value, torch.Tensor)
