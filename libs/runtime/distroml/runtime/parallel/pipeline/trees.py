"""Nested arguments and results as flat leaves, each with its place. The only user of torch's pytree module.

It is private by name; torch's own export, FSDP and pipelining use it, and Hugging Face registers its output classes
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

Path = tuple[Any, ...]
Shape = pytree.TreeSpec


def flatten(tree: Any) -> tuple[dict[Path, Any], Shape]:
    """The leaves of `tree` by their path, in order, and what is needed to build it again."""
    pairs, shape = cast("tuple[list[tuple[Path, Any]], Shape]", cast("Any", pytree).tree_flatten_with_path(tree))
    return dict(pairs), shape


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of `tree`, in order."""
    return cast("list[Any]", cast("Any", pytree).tree_leaves(tree))


def build(leaves: list[Any], shape: Shape) -> Any:
    """The inverse of `flatten`."""
    return cast("Any", pytree).tree_unflatten(leaves, shape)


def map_leaves(change: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with every leaf changed."""
    return cast("Any", pytree).tree_map(change, tree)


def replaced(tree: Any, new: Mapping[Path, Any]) -> Any:
    """`tree` with the leaves at the given paths replaced.

    Raises:
        KeyError: a path is not in the tree.
    """
    if not new:
        return tree
    leaves, shape = flatten(tree)
    for path in new:
        leaves[path]
    return build([new.get(path, leaf) for path, leaf in leaves.items()], shape)


def words(path: Path) -> str:
    """A path for people, such as `[0]['mask']`."""
    return cast("str", cast("Any", pytree).keystr(path))


def steps(path: Path) -> list[int | str]:
    """A path as the places and names that lead along it."""
    return [key.idx if isinstance(key, pytree.SequenceKey) else str(getattr(key, "key", key)) for key in path]
