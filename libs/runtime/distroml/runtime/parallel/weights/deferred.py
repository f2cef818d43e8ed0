"""A tensor without memory that says it is on the CPU: the one file of this package that needs torch's private parts.

`meta` tensors alone would not do: factories ask for the device, and `_apply`, `copy.deepcopy` and `nn.Parameter` treat
`meta` as a place of its own. What is used here is how torch's own fake tensors are made; a test pins it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateImportUsage]
from torch.utils._python_dispatch import TorchDispatchMode

from distroml.runtime.parallel.weights.errors import CannotRecord

CPU = torch.device("cpu")
META = torch.device("meta")

Handler = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]
"""(operation, arguments, keyword arguments) -> result."""


REFUSED: list[CannotRecord] = []
"""What deferred tensors refused: a thread's error, or one that the factory caught, is seen by nobody else."""


class Deferred(torch.Tensor):
    """A tensor without memory that says it is on the CPU. Outside of a recording it refuses every operation."""

    # Results stay what the operation gave: some are real.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types, kwargs
        if func is torch.ops.prim.device.default:
            return CPU
        shapes = [tuple(tensor.shape) for tensor in tensors_in(args)]
        refused = CannotRecord(f"{func} of tensors of shapes {shapes} was called outside of the recording")
        REFUSED.append(refused)
        raise refused


def deferred_of(meta: torch.Tensor) -> Deferred:
    """A deferred tensor over the storage of a plain `meta` tensor."""
    make = cast("Callable[..., Deferred]", cast(Any, torch.Tensor)._make_subclass)
    return make(Deferred, meta, False, dispatch_device=True, device_for_backend_keys=CPU)


def storage_key(tensor: torch.Tensor) -> int:
    """Equal for tensors that share memory, while that memory lives."""
    return cast(int, cast(Any, tensor.untyped_storage())._cdata)


def meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """A plain `meta` tensor of the same layout, over memory of its own."""
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=META)


def on_meta(tree: Any) -> Any:
    """Arguments with plain `meta` tensors in place of tensors, over the same storages, and `meta` as the device."""

    def lower(leaf: Any) -> Any:
        if isinstance(leaf, Deferred):
            plain = cast(Any, torch.empty(0, dtype=leaf.dtype, device=META))
            return plain.set_(leaf.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride())
        if isinstance(leaf, torch.Tensor):
            return meta_like(leaf)
        return META if isinstance(leaf, torch.device) else leaf

    return pytree.tree_map(lower, tree)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors among the leaves."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def map_tensors(change: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The tree with each tensor changed."""

    def of_leaf(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, torch.Tensor) else leaf

    return pytree.tree_map(of_leaf, tree)


def name_of(func: Any) -> str:
    """An operation's name without its overload."""
    return cast(str, func.overloadpacket.__name__)


def is_random(func: Any) -> bool:
    """Whether it draws from a generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def written_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The arguments that an operation changes, as its schema says."""
    found: list[torch.Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_in(args[place] if place < len(args) else kwargs.get(argument.name))
    return found


def changes_in_place_only(func: Any) -> bool:
    """Whether all that it returns is the one argument that it changes, or nothing."""
    returns = func._schema.returns
    return len(returns) <= 1 and all(one.alias_info is not None and one.alias_info.is_write for one in returns)


class Operations(TorchDispatchMode):
    """While active, `handler` gets every operation of this thread."""

    def __init__(self, handler: Handler) -> None:
        cast(Any, super()).__init__()
        self._handler = handler

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        return self._handler(func, args, kwargs or {})
