"""Deferred memory: what would be in it is known by the operations that write it, replayed when it is read.

A tape is the order of operations; a store is memory that has no bytes. Reading a store replays only the operations
that its value depends on, in their order, from its last full overwrite on, each random one from the state that the
generator had before it: so any store can be read alone, in any order, with the bits of the real run.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateImportUsage]

_MAPPED_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor over a store: a view, as torch describes one."""

    store: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def covers(self) -> int:
        """How many different elements it has, where it is dense; 0 where elements overlap or gaps lie between."""
        expected = 1
        for stride, size in sorted(zip(self.stride, self.size, strict=True)):
            if size == 0:
                return 0
            if size > 1 and stride != expected:
                return 0
            expected *= size
        return math.prod(self.size)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on the tape.

    Attributes:
        func: what the dispatcher called.
        args: its arguments, with `Ref` in place of tensors over stores.
        kwargs: the same of its keyword arguments.
        reads: stores whose content it needs.
        writes: stores that it changes.
        overwrites: those of `writes` of which nothing remains.
        creates: (place in the flattened result, store) of the memory that it makes.
        state: the generator's state before it; None where it draws nothing.
        default_dtype: torch's at that time.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: frozenset[int]
    writes: frozenset[int]
    overwrites: frozenset[int]
    creates: tuple[tuple[int, int], ...]
    state: torch.Tensor | None
    default_dtype: torch.dtype


class Tape:
    """Stores and operations; `read` gives a store's content as it is after the last operation."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._writers: dict[int, list[int]] = {}
        self._ops: dict[int, Op] = {}
        self._next = 0
        self._kept: tuple[int, int, torch.UntypedStorage] | None = None

    def store(self, size_bytes: int) -> int:
        """A new store, of zeros until something writes it."""
        number = len(self._sizes)
        self._sizes[number] = size_bytes
        self._writers[number] = []
        return number

    def size(self, store: int) -> int:
        """Its bytes."""
        return self._sizes[store]

    def add(self, op: Op) -> None:
        """The next operation."""
        self._ops[self._next] = op
        for store in op.writes | {store for _, store in op.creates}:
            self._writers[store].append(self._next)
        self._next += 1

    def keep_only(self, stores: Iterable[int]) -> None:
        """Forget every operation that none of these stores depends on."""
        needed = {index for store in set(stores) for index in self._needed(store)}
        self._ops = {index: op for index, op in self._ops.items() if index in needed}
        self._writers = {
            store: [index for index in indices if index in needed] for store, indices in self._writers.items()
        }

    def constants(self) -> int:
        """Bytes that the tape itself holds: tensors with real values among the arguments, and generator states."""
        held: dict[int, int] = {}
        for op in self._ops.values():
            for value in (*cast("list[object]", pytree.tree_leaves((op.args, op.kwargs))), op.state):
                if isinstance(value, torch.Tensor):
                    held[id(value)] = value.nbytes
        return sum(held.values())

    def read(self, ref: Ref, *, keep: bool = False) -> torch.Tensor:
        """The tensor's content, in memory of its own.

        Args:
            ref: what to read.
            keep: remember the store's content for the next read of the same store.
        """
        written = self._writers[ref.store][-1] if self._writers[ref.store] else -1
        if self._kept is not None and self._kept[:2] == (ref.store, written):
            storage = self._kept[2]
        else:
            self._kept = None
            storage = self._replay(ref.store)
            if keep:
                self._kept = (ref.store, written, storage)
        return view(ref, storage)

    def forget(self) -> None:
        """Drop what the last read kept."""
        self._kept = None

    def _needed(self, store: int) -> list[int]:
        """The operations that the store's present content depends on, in their order."""
        found: set[int] = set()
        wanted = [(store, self._next)]
        while wanted:
            store, before = wanted.pop()
            for index in reversed(self._writers[store]):
                if index >= before:
                    continue
                op = self._ops[index]
                if index not in found:
                    found.add(index)
                    wanted += [(other, index) for other in op.reads]
                if store in op.overwrites or any(store == made for _, made in op.creates):
                    break
        return sorted(found)

    def _replay(self, store: int) -> torch.UntypedStorage:
        generator = torch.default_generator
        before, dtype_before = generator.get_state(), torch.get_default_dtype()
        memory: dict[int, torch.UntypedStorage] = {}
        try:
            with torch.no_grad():
                for index in self._needed(store):
                    self._run(self._ops[index], memory)
        finally:
            generator.set_state(before)
            torch.set_default_dtype(dtype_before)
        return self._memory(store, memory)

    def _run(self, op: Op, memory: dict[int, torch.UntypedStorage]) -> None:
        torch.set_default_dtype(op.default_dtype)
        custom: list[torch.Generator] = []

        def real(value: object) -> object:
            if isinstance(value, Ref):
                return view(value, self._memory(value.store, memory))
            if isinstance(value, GeneratorMark):
                custom.append(torch.Generator())
                return custom[-1]
            return value

        args, kwargs = pytree.tree_map(real, (op.args, op.kwargs))
        if op.state is not None:
            (custom[0] if custom else torch.default_generator).set_state(op.state)
        results = pytree.tree_leaves(op.func(*args, **kwargs))
        for place, store in op.creates:
            memory[store] = cast(torch.Tensor, results[place]).untyped_storage()

    def _memory(self, store: int, memory: dict[int, torch.UntypedStorage]) -> torch.UntypedStorage:
        if store not in memory:
            memory[store] = passing_memory(self._sizes[store])
        return memory[store]


class GeneratorMark:
    """Stands for a generator that a factory passed: replayed with one of our own, from the recorded state."""


def passing_memory(size_bytes: int) -> torch.UntypedStorage:
    """Zeros that go back to the system once they are dropped.

    From malloc, tensors of some megabytes lie in the heap, the small objects made meanwhile keep it from shrinking,
    and the process grows by as much as the whole model.
    """
    if size_bytes < _MAPPED_BYTES:
        return torch.zeros(size_bytes, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(mmap.mmap(-1, size_bytes), dtype=torch.uint8).untyped_storage()


def view(ref: Ref, storage: torch.UntypedStorage) -> torch.Tensor:
    """The tensor over real memory."""
    empty = torch.empty(0, dtype=ref.dtype, device=storage.device)
    return empty.set_(cast(Any, storage), ref.offset, ref.size, ref.stride)  # pyright: ignore[reportUnknownMemberType]
