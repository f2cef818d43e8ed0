"""Runs a model factory without memory for its large tensors, and notes what would have been written into them.

Operations on a deferred tensor run on `meta` for their shapes and go onto the tape; whatever needs a real value
(`.item()`, `numpy()`, a shape that depends on data) replays the tape and gets it. Tensors below a size are simply
real. Random numbers are drawn for real, on memory that is dropped at once, so that every later draw is that of the
real run.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateImportUsage]

from distroml.runtime.parallel.weights.deferred import (
    CPU,
    META,
    REFUSED,
    Deferred,
    Operations,
    changes_in_place_only,
    deferred_of,
    is_random,
    map_tensors,
    meta_like,
    name_of,
    on_meta,
    storage_key,
    tensors_in,
    written_by,
)
from distroml.runtime.parallel.weights.errors import CannotRecord
from distroml.runtime.parallel.weights.tape import GeneratorMark, Op, Ref, Tape, passing_memory, view

SMALL_BYTES = 16 * 1024
"""Tensors up to this size are not deferred: a table of positions is cheaper kept than replayed."""

Args = tuple[Sequence[Any], Mapping[str, Any]]

# Nothing of what their first argument held before remains.
_FILLS = frozenset(
    (
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
    )
)
# They draw as many numbers as their argument has elements, whatever these are.
_LIKE = frozenset(("rand_like", "randn_like", "randint_like"))
_EMPTY = frozenset(("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted"))


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
        self._refused: list[CannotRecord] = []

    @contextmanager
    def recording(self) -> Generator[None]:
        """Defer what is made inside, on this thread.

        Raises:
            CannotRecord: something could not be put off, even where the factory caught the error.
        """
        REFUSED.clear()
        with _Exits(self), Operations(self._run):
            yield
        if self._refused or REFUSED:
            raise [*self._refused, *REFUSED][0]

    def is_deferred(self, tensor: torch.Tensor) -> TypeGuard[Deferred]:
        """Whether it has no memory."""
        return isinstance(tensor, Deferred)

    def ref(self, tensor: torch.Tensor) -> Ref:
        """Where a deferred tensor's content lies on the tape."""
        if tensor.is_conj() or tensor.is_neg():
            raise CannotRecord("it makes a lazily conjugated or negated tensor")
        store = self._stores[storage_key(tensor)][0]
        return _layout(tensor, store)

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """A deferred tensor's present content, in memory of its own."""
        ref, self._replaying = self.ref(tensor), True
        try:
            return self.tape.read(ref, keep=True).clone()
        finally:
            self._replaying = False

    def alive(self) -> list[torch.Tensor]:
        """Deferred tensors that somebody still holds."""
        return [tensor for made in self._made if (tensor := made()) is not None]

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._replaying:
            return func(*args, **kwargs)
        try:
            return self._note_or_run(func, args, kwargs)
        except CannotRecord as error:
            self._refused.append(error)
            raise

    def _note_or_run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is torch.ops.prim.device.default:
            return CPU if isinstance(args[0], Deferred) else func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        deferred = [tensor for tensor in given if isinstance(tensor, Deferred)]
        if not deferred:
            return self._put_off(func, (args, kwargs), given)
        if torch.Tag.inplace_view in func.tags or name_of(func) == "set_":
            raise CannotRecord(f"it calls {func}, which changes a tensor's shape or memory in place")
        written = written_by(func, args, kwargs)
        if any(not isinstance(tensor, Deferred) for tensor in written):
            if any(isinstance(tensor, Deferred) for tensor in written):
                raise CannotRecord(f"{func} writes into a small and a large tensor at once")
            return self._on_values(func, (args, kwargs))
        state = None
        if is_random(func):
            if not self._draws_alike(func, deferred, written):
                return self._depend(func, (args, kwargs), written)
            state = self._draw(func, (args, kwargs))
        try:
            results = func(*on_meta(tuple(args)), **on_meta(dict(kwargs)))
        except (NotImplementedError, RuntimeError, TypeError):
            # Its shape depends on values, or it has no kernel for shapes; a real error comes again with real values.
            return self._depend(func, (args, kwargs), written)
        if any(not isinstance(leaf, torch.Tensor | None) for leaf in pytree.tree_leaves(results)):
            return self._depend(func, (args, kwargs), written)
        return self._note(func, (args, kwargs), written, results, state)

    def _put_off(self, func: Any, call: Args, given: Sequence[torch.Tensor]) -> Any:
        """An operation without deferred arguments: run it, then put its large results off."""
        args, kwargs = call
        if name_of(func) in _EMPTY and _on_cpu(kwargs) and all(tensor.device == CPU for tensor in given):
            blank = func(*on_meta(tuple(args)), **on_meta({**kwargs, "device": CPU}))
            if self._worth(blank, CPU):
                self._store(blank)
                return self._wrap(blank)
        state = _generator(kwargs).get_state() if is_random(func) else None
        inputs = {storage_key(tensor) for tensor in given}
        large = any(tensor.nbytes > self._small_bytes for tensor in given)
        results = func(*args, **kwargs)
        made = tensors_in(results)
        if (
            large
            or not made
            or written_by(func, args, kwargs)
            or any(storage_key(tensor) in inputs or not self._worth(tensor) for tensor in made)
        ):
            return results
        metas = [meta_like(tensor) for tensor in made]
        self._add(func, call, [], metas, state)
        blank = iter(metas)
        return map_tensors(lambda _: self._wrap(next(blank)), results)

    def _worth(self, tensor: torch.Tensor, device: torch.device | None = None) -> bool:
        """Whether to put a new tensor off; `device` where it is not the tensor's own."""
        device = device or tensor.device
        if device != CPU:
            if device == META:
                return False
            raise CannotRecord(f"it makes tensors on {device}; make the model on the CPU")
        plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
        return bool(
            plain
            and tensor.nbytes > self._small_bytes
            and tensor.storage_offset() == 0
            and _layout(tensor, 0).covers == tensor.numel()
        )

    def _depend(self, func: Any, call: Args, written: Sequence[torch.Tensor]) -> Any:
        """An operation whose result, or its shape, depends on its arguments' content."""
        if not written:
            return self._on_values(func, call)
        if is_random(func) or len(written) > 1 or not changes_in_place_only(func):
            raise CannotRecord(f"it calls {func}, whose result depends on values in a way that cannot be put off")
        self._add(func, call, written, [], None)
        return written[0]

    def _on_values(self, func: Any, call: Args) -> Any:
        def real(tensor: torch.Tensor) -> torch.Tensor:
            return self.value(tensor) if isinstance(tensor, Deferred) else tensor

        return func(*map_tensors(real, tuple(call[0])), **map_tensors(real, dict(call[1])))

    @staticmethod
    def _draws_alike(func: Any, deferred: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> bool:
        """Whether it draws the same numbers whatever its deferred arguments hold."""
        if name_of(func) in _LIKE:
            return True
        return name_of(func) in _FILLS and all(any(one is other for other in written) for one in deferred)

    def _draw(self, func: Any, call: Args) -> torch.Tensor:
        """Draw what it draws, into memory that is dropped at once; returns the generator's state before."""

        def like(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, Deferred):
                return tensor
            ref = self.ref(tensor)
            return view(ref, passing_memory(self.tape.size(ref.store)))

        state = _generator(call[1]).get_state()
        func(*map_tensors(like, tuple(call[0])), **map_tensors(like, dict(call[1])))
        return state

    def _note(
        self, func: Any, call: Args, written: Sequence[torch.Tensor], results: Any, state: torch.Tensor | None
    ) -> Any:
        """Put the operation onto the tape where it makes or changes memory; views need no note."""
        made = tensors_in(results)
        if written or any(storage_key(tensor) not in self._stores for tensor in made):
            self._add(func, call, written, made, state)
        # In-place operations return the very tensor that they were given.
        same = {self.ref(tensor): tensor for tensor in written}

        def wrap(meta: torch.Tensor) -> torch.Tensor:
            given = same.get(self.ref(meta))
            return self._wrap(meta) if given is None else given

        return map_tensors(wrap, results)

    def _add(
        self,
        func: Any,
        call: Args,
        written: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        state: torch.Tensor | None,
    ) -> None:
        creates = [
            (place, self._store(tensor))
            for place, tensor in enumerate(results)
            if storage_key(tensor) not in self._stores
        ]
        if name_of(func) in _EMPTY:
            return
        args, kwargs = self._lower(call)
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Ref)]
        writes = [self.ref(tensor) for tensor in written]
        fills: set[int] = {ref.store for ref in writes if name_of(func) in _FILLS and self._whole(ref)}
        if sum(ref.store in fills for ref in given) > len(fills):
            # It reads what it fills, through another view.
            fills = set()
        self.tape.add(
            Op(
                func,
                args,
                kwargs,
                reads=frozenset(ref.store for ref in given) - fills,
                writes=frozenset(ref.store for ref in writes),
                overwrites=frozenset(fills),
                creates=tuple(creates),
                state=state,
                default_dtype=torch.get_default_dtype(),
            )
        )

    def _lower(self, call: Args) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def lower(leaf: Any) -> Any:
            if isinstance(leaf, Deferred):
                return self.ref(leaf)
            if isinstance(leaf, torch.Tensor):
                # Copied: the factory may change it, and the tape must not see that.
                return leaf.detach().clone()
            return GeneratorMark() if isinstance(leaf, torch.Generator) else leaf

        return pytree.tree_map(lower, (tuple(call[0]), dict(call[1])))

    def _whole(self, ref: Ref) -> bool:
        return ref.covers * ref.dtype.itemsize == self.tape.size(ref.store)

    def _store(self, meta: torch.Tensor) -> int:
        storage = meta.untyped_storage()
        number = self.tape.store(storage.nbytes())
        # The storage is kept, so that no other can get its key.
        self._stores[storage_key(meta)] = (number, storage)
        return number

    def _wrap(self, meta: torch.Tensor) -> Deferred:
        deferred = deferred_of(meta)
        self._made.append(weakref.ref(deferred))
        return deferred


class _Exits(TorchFunctionMode):
    """Ways out of torch that are no operations: they get the content."""

    def __init__(self, recorder: Recorder) -> None:
        cast(Any, super()).__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _EXITS and self._recorder.is_deferred(args[0]):
            return func(self._recorder.value(args[0]), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_METHODS = cast(Any, torch.Tensor)
_EXITS = frozenset[Any]((_METHODS.numpy, _METHODS.tolist, _METHODS.__array__))


def _layout(tensor: torch.Tensor, store: int) -> Ref:
    return Ref(store, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))


def _on_cpu(kwargs: Mapping[str, Any]) -> bool:
    device = kwargs.get("device")
    return (device is None or torch.device(device) == CPU) and not kwargs.get("pin_memory")


def _generator(kwargs: Mapping[str, Any]) -> torch.Generator:
    return kwargs.get("generator") or torch.default_generator
