"""Runs a model factory without memory for its large tensors, and notes what would have been written into them.

A deferred tensor is a tensor on `meta` that says it is on the CPU. Operations on it run on `meta` for their shapes and
go onto the tape; whatever needs a real value (`.item()`, `numpy()`, a data-dependent shape) replays the tape and gets
it. Tensors below a size are simply real. Random numbers are drawn for real, on memory that is dropped at once, so that
every later draw is the same as in the real run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateImportUsage]
from torch.utils._python_dispatch import TorchDispatchMode

from distroml.runtime.parallel.weights.errors import CannotRecord
from distroml.runtime.parallel.weights.tape import GeneratorMark, Op, Ref, Tape

SMALL_BYTES = 16 * 1024
"""Tensors up to this size are not deferred: a table of positions is cheaper kept than replayed."""

_CPU = torch.device("cpu")
_FILLS = frozenset(
    [
        "fill_",
        "zero_",
        "copy_",
        "normal_",
        "uniform_",
        "random_",
        "exponential_",
        "geometric_",
        "cauchy_",
        "log_normal_",
        "bernoulli_",
    ]
)
_LIKE = frozenset(["rand_like", "randn_like", "randint_like"])
_EMPTY = frozenset(["empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted"])


class Deferred(torch.Tensor):
    """A tensor without memory that says it is on the CPU. Outside of the recording it refuses every operation."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def __new__(cls, meta: torch.Tensor) -> Deferred:
        # The way in which torch's own fake tensors say that they are on another device than `meta`.
        make: Callable[..., Deferred] = cast(Any, torch.Tensor)._make_subclass
        return make(cls, meta, False, dispatch_device=True, device_for_backend_keys=_CPU)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types, kwargs
        if func is torch.ops.prim.device.default:
            return _CPU
        raise CannotRecord(f"{func} of a tensor of shape {tuple(args[0].shape)} was called outside of the recording")


class Recorder:
    """Everything that one run of a factory wrote; use `recording()` around the run.

    Args:
        small_bytes: tensors up to this size are real.
    """

    def __init__(self, small_bytes: int = SMALL_BYTES) -> None:
        self.tape = Tape()
        self._small_bytes = small_bytes
        self._stores: dict[int, tuple[int, torch.UntypedStorage]] = {}
        self._made: list[weakref.ref[torch.Tensor]] = []
        self._replaying = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Defer what is made inside."""
        with _Functions(self), _Dispatch(self):
            yield

    def is_deferred(self, value: object) -> bool:
        """Whether it is a tensor without memory."""
        return isinstance(value, Deferred)

    def ref(self, tensor: torch.Tensor) -> Ref:
        """Where a deferred tensor's content lies on the tape."""
        if tensor.is_conj() or tensor.is_neg():
            raise CannotRecord("it makes a lazily conjugated or negated tensor")
        store = self._stores[_key(tensor)][0]
        return Ref(store, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """A deferred tensor's present content, in memory of its own."""
        ref, self._replaying = self.ref(tensor), True
        try:
            return self.tape.read(ref, keep=True)
        finally:
            self._replaying = False

    def alive(self) -> list[torch.Tensor]:
        """Deferred tensors that somebody still holds."""
        return [tensor for made in self._made if (tensor := made()) is not None]

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operation of the factory."""
        if self._replaying:
            return func(*args, **kwargs)
        if func is torch.ops.prim.device.default:
            return _CPU if isinstance(args[0], Deferred) else func(*args, **kwargs)
        if not any(isinstance(value, Deferred) for value in pytree.tree_leaves((args, kwargs))):
            return self._run_real(func, args, kwargs)
        if torch.Tag.inplace_view in func.tags or func.overloadpacket is torch.ops.aten.set_:
            raise CannotRecord(f"it calls {func}, which changes a tensor's shape or memory in place")
        written = _written(func, args, kwargs)
        if any(not isinstance(tensor, Deferred) for tensor in written):
            if any(isinstance(tensor, Deferred) for tensor in written):
                raise CannotRecord(f"{func} writes into a small and a large tensor at once")
            return func(*self._real(args), **self._real(kwargs))
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and not (written and _name(func) in _FILLS) and _name(func) not in _LIKE:
            return self._run_on_values(func, args, kwargs)
        state = self._draw(func, args, kwargs) if random else None
        try:
            results = func(*_meta(args), **_meta(kwargs))
        except (NotImplementedError, RuntimeError, TypeError):
            # Its shape depends on values, or it has no kernel for shapes.
            return self._run_on_values(func, args, kwargs)
        leaves = pytree.tree_leaves(results)
        if any(not isinstance(leaf, torch.Tensor) for leaf in leaves if leaf is not None):
            return self._run_on_values(func, args, kwargs)
        return self._note(func, args, kwargs, written, results, state)

    def _run_real(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation without deferred arguments: run it, then put its large results off."""
        state = _generator(kwargs).get_state() if torch.Tag.nondeterministic_seeded in func.tags else None
        inputs = {_key(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        results = func(*args, **kwargs)
        leaves = pytree.tree_leaves(results)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if (
            not tensors
            or _written(func, args, kwargs)
            or any(not self._worth(tensor) or _key(tensor) in inputs for tensor in tensors)
            or any(leaf.nbytes > self._small_bytes for leaf in pytree.tree_leaves((args, kwargs)) if _is_real(leaf))
        ):
            return results
        metas = [_meta_like(tensor) for tensor in tensors]
        if _name(func) in _EMPTY:
            for meta in metas:
                self._store(meta)
        else:
            self._add(func, args, kwargs, [], metas, state)
        wrapped = iter([self._wrap(meta) for meta in metas])
        return pytree.tree_map(lambda leaf: next(wrapped) if isinstance(leaf, torch.Tensor) else leaf, results)

    def _worth(self, tensor: torch.Tensor) -> bool:
        if tensor.device != _CPU:
            if tensor.device.type == "meta":
                return False
            raise CannotRecord(f"it makes tensors on {tensor.device}; make the model on the CPU")
        dense = Ref(0, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), 0).covers == tensor.numel()
        plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
        return plain and dense and tensor.storage_offset() == 0 and tensor.nbytes > self._small_bytes

    def _run_on_values(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation that needs its arguments' content: replay them, run it, and put what it changed back."""
        written = _written(func, args, kwargs)
        if not written:
            return func(*self._real(args), **self._real(kwargs))
        if torch.Tag.nondeterministic_seeded in func.tags or any(
            leaf is not None and not any(leaf is one for one in written)
            for leaf in pytree.tree_leaves(self._results_in_place(func, args, kwargs, written))
        ):
            raise CannotRecord(f"it calls {func}, whose result depends on values in a way that cannot be put off")
        self._add(func, args, kwargs, written, [], None)
        return self._results_in_place(func, args, kwargs, written)

    @staticmethod
    def _results_in_place(
        func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[torch.Tensor]
    ) -> Any:
        """What an operation that only changes its arguments returns: those that its schema says, in order."""
        del args, kwargs
        returns = func._schema.returns
        if len(returns) > len(written) or any(one.alias_info is None for one in returns):
            return object()
        return written[0] if len(returns) == 1 else tuple(written[: len(returns)]) or None

    def _draw(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Draw what `func` draws, into memory that is dropped at once; returns the state before."""
        state = _generator(kwargs).get_state()
        like = pytree.tree_map(
            lambda leaf: (
                torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype) if isinstance(leaf, Deferred) else leaf
            ),
            (tuple(args), dict(kwargs)),
        )
        func(*like[0], **like[1])
        return state

    def _note(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        written: Sequence[torch.Tensor],
        results: Any,
        state: torch.Tensor | None,
    ) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        made = [tensor for tensor in tensors if _key(tensor) not in self._stores]
        if _name(func) in _EMPTY:
            for meta in made:
                self._store(meta)
        elif made or written:
            self._add(func, args, kwargs, written, tensors, state)
        # In-place operations return the very tensor they were given.
        same = {(_key(tensor), tensor.storage_offset(), tuple(tensor.shape)): tensor for tensor in written}

        def wrap(leaf: object) -> object:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            given = same.get((_key(leaf), leaf.storage_offset(), tuple(leaf.shape))) if written else None
            return given if given is not None else self._wrap(leaf)

        return pytree.tree_map(wrap, results)

    def _add(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        written: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        state: torch.Tensor | None,
    ) -> None:
        creates = [
            (place, self._store(tensor)) for place, tensor in enumerate(results) if _key(tensor) not in self._stores
        ]
        writes = [self.ref(tensor) for tensor in written]

        def lower(leaf: object) -> object:
            if isinstance(leaf, Deferred):
                return self.ref(leaf)
            if isinstance(leaf, torch.Tensor):
                # Copied: the factory may change it, and the tape must not see that.
                return leaf.detach().clone()
            return GeneratorMark() if isinstance(leaf, torch.Generator) else leaf

        lowered = cast("tuple[tuple[Any, ...], dict[str, Any]]", pytree.tree_map(lower, (tuple(args), dict(kwargs))))
        given = [leaf for leaf in pytree.tree_leaves(lowered) if isinstance(leaf, Ref)]
        fills = {ref.store for ref in writes if _name(func) in _FILLS and self._whole(ref)}
        if fills and sum(ref.store in fills for ref in given) > len(fills):
            fills = set()  # It reads what it fills, through another view.
        self.tape.add(
            Op(
                func,
                *lowered,
                reads=frozenset(ref.store for ref in given) - fills,
                writes=frozenset(ref.store for ref in writes),
                overwrites=frozenset(fills),
                creates=tuple(creates),
                state=state,
                default_dtype=torch.get_default_dtype(),
            )
        )

    def _whole(self, ref: Ref) -> bool:
        return ref.covers * ref.dtype.itemsize == self.tape.size(ref.store)

    def _store(self, meta: torch.Tensor) -> int:
        storage = meta.untyped_storage()
        number = self.tape.store(storage.nbytes())
        # The storage is kept, so that no other can get its address.
        self._stores[_key(meta)] = (number, storage)
        return number

    def _wrap(self, meta: torch.Tensor) -> Deferred:
        deferred = Deferred(meta)
        self._made.append(weakref.ref(deferred))
        return deferred

    def _real(self, tree: Any) -> Any:
        return pytree.tree_map(lambda leaf: self.value(leaf) if isinstance(leaf, Deferred) else leaf, tree)


class _Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._recorder.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Ways out of torch that no dispatcher sees."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], Deferred) and func in _EXITS:
            return func(self._recorder.value(args[0]), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_EXITS = frozenset((torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _name(func: Any) -> str:
    return func.overloadpacket.__name__


def _key(tensor: torch.Tensor) -> int:
    return cast(int, cast(Any, tensor.untyped_storage())._cdata)


def _is_real(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, Deferred)


def _generator(kwargs: Mapping[str, Any]) -> torch.Generator:
    return kwargs.get("generator") or torch.default_generator


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that the operation changes, as its schema says."""
    found: list[torch.Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return found


def _meta_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _meta(tree: Any) -> Any:
    """The arguments with plain `meta` tensors in place of tensors, and `meta` as the device to make results on."""

    def lower(leaf: object) -> object:
        if isinstance(leaf, Deferred):
            plain = torch.empty(0, dtype=leaf.dtype, device="meta")
            return plain.set_(cast(Any, leaf.untyped_storage()), leaf.storage_offset(), leaf.shape, leaf.stride())  # pyright: ignore[reportUnknownMemberType]
        if isinstance(leaf, torch.Tensor):
            return _meta_like(leaf)
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    return pytree.tree_map(lower, tree)
