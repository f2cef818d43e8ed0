"""First weights equal to those of one process, without any rank holding the whole model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import nn

from distroml.runtime.parallel.weights.deferred import storage_key
from distroml.runtime.parallel.weights.errors import CannotRecord, WeightsRefused
from distroml.runtime.parallel.weights.recorder import SMALL_BYTES, Recorder
from distroml.runtime.parallel.weights.source import BuiltSource, Index, Turn, named_tensors, unknown
from distroml.runtime.parallel.weights.swap import blank_of, loose_tensors, swap
from distroml.runtime.parallel.weights.tape import Ref, Tape
from distroml.runtime.typed import seed_torch

Factory = Callable[[], nn.Module]


class RecordedSource:
    """Weights that are made when they are read: each alone, with the bits that the factory would give it.

    Reading every tensor once costs about one initialisation. Tensors that were too small to put off, or could not be,
    are kept: `held_bytes` says how much that is, together with the tape.
    """

    def __init__(
        self, tape: Tape, deferred: dict[str, Ref], real: dict[str, torch.Tensor], names: tuple[str, ...]
    ) -> None:
        self._tape, self._deferred, self._real, self._names = tape, deferred, real, names

    @property
    def held_bytes(self) -> int:
        """Memory that this source keeps."""
        return self._tape.constants() + sum({id(t): t.nbytes for t in self._real.values()}.values())

    def names(self) -> Sequence[str]:
        """See `WeightSource`."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """See `WeightSource`."""
        found = self._found(name)
        return found.size if isinstance(found, Ref) else tuple(found.shape)

    def dtype(self, name: str) -> torch.dtype:
        """See `WeightSource`."""
        return self._found(name).dtype

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """See `WeightSource`; what the tensor's memory held is kept until the next read of another."""
        found = self._found(name)
        return (self._tape.read(found, keep=True) if isinstance(found, Ref) else found)[index]

    def close(self) -> None:
        """Drop what the last read kept."""
        self._tape.forget()

    def _found(self, name: str) -> Ref | torch.Tensor:
        found = self._deferred.get(name)
        if found is None:
            found = self._real.get(name)
        if found is None:
            raise unknown(name)
        return found


def record(
    factory: Factory, seed: int, *, small_bytes: int = SMALL_BYTES
) -> tuple[nn.Module, RecordedSource | BuiltSource]:
    """The model without memory, and where its first weights come from: those of `factory` after `manual_seed(seed)`.

    Torch's generator afterwards is where the real run leaves it. A factory that does what cannot be put off is run
    for real instead, by one process of a machine at a time: the source's `reason` then says why, and how much memory
    that takes.

    Args:
        factory: makes the model on the CPU.
        seed: of torch's generator.
        small_bytes: tensors up to this size are made and kept.

    Raises:
        TypeError: the factory returns no module.
        WeightsRefused: two parameters share memory without being one.
        Exception: whatever the factory raises in a real run too.
    """
    try:
        return _record(factory, seed, small_bytes)
    except Exception as error:
        # Whatever it was: the real run either works or raises what the user must see.
        why = str(error) if isinstance(error, CannotRecord) else f"{type(error).__name__}: {error}"
    turn = Turn()
    with turn:
        model = _make(factory, seed)
        size_bytes = sum({id(tensor): tensor.nbytes for tensor in named_tensors(model).values()}.values())
        swap(model, {id(tensor): blank_of(tensor) for tensor in _registered(model)})
    reason = (
        f"the model's factory cannot be recorded ({why}); it is run for real instead, by one process of a machine at "
        f"a time, which takes {size_bytes / 1e6:.0f} MB while weights are read"
    )
    return model, BuiltSource(lambda: _make(factory, seed), model, reason, turn)


def _record(factory: Factory, seed: int, small_bytes: int) -> tuple[nn.Module, RecordedSource]:
    recorder = Recorder(small_bytes)
    with recorder.recording():
        model = _make(factory, seed)
    deferred, real = _sort(model, recorder)
    stores = {ref.store for ref in deferred.values()}
    _make_blank(model, recorder, stores)
    recorder.tape.keep_only(stores)
    _ensure_none_is_left(recorder)
    return model, RecordedSource(recorder.tape, deferred, real, tuple(named_tensors(model)))


def _sort(model: nn.Module, recorder: Recorder) -> tuple[dict[str, Ref], dict[str, torch.Tensor]]:
    tensors = named_tensors(model)
    deferred = {name: recorder.ref(tensor) for name, tensor in tensors.items() if recorder.is_deferred(tensor)}
    for name, tensor in tensors.items():
        if name not in deferred and tensor.is_meta:
            # `module.to(dtype)` puts another tensor behind the parameter, out of the recorder's sight.
            raise CannotRecord(f"{name} was given other memory after it was made, as .to(dtype) does")
    return deferred, {name: tensor.detach() for name, tensor in tensors.items() if name not in deferred}


def _make_blank(model: nn.Module, recorder: Recorder, stores: set[int]) -> None:
    """Take the memory from parameters and buffers; give plain attributes their values."""
    registered = _registered(model)
    replaced = {id(tensor): blank_of(tensor) for tensor in registered}
    for tensor in loose_tensors(model, replaced):
        if recorder.is_deferred(tensor):
            if recorder.ref(tensor).store in stores:
                raise CannotRecord(
                    f"an attribute of shape {tuple(tensor.shape)} is a view of a parameter or buffer, and would no "
                    "longer be one"
                )
            replaced[id(tensor)] = recorder.value(tensor)
    swap(model, replaced)


def _ensure_none_is_left(recorder: Recorder) -> None:
    gc.collect()
    if left := recorder.alive():
        raise CannotRecord(
            f"{len(left)} tensors, the first of shape {tuple(left[0].shape)}, are held outside of the model's "
            "modules: by a closure, a cache, or an object that is no module"
        )


def _registered(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once. Two parameters over the same memory are refused: blank, they would part."""
    places: dict[tuple[int, int], str] = {}
    for name, parameter in model.named_parameters():
        place = (storage_key(parameter), int(parameter.storage_offset()))
        if parameter.numel() and places.setdefault(place, name) != name:
            raise WeightsRefused(
                f"{places[place]} and {name} are two parameters over the same memory, so a step would change both "
                "twice; assign the same nn.Parameter to both places"
            )
    return [*model.parameters(), *model.buffers()]


def _make(factory: Factory, seed: int) -> nn.Module:
    seed_torch(seed)
    made = factory()
    if not isinstance(made, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the model's factory must return a torch.nn.Module, got {type(made).__name__}")
    return made
