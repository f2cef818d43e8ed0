"""Safetensors files read by slice: only the bytes of the slice leave the disk, and nothing is ever unpickled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import torch

from distroml.runtime.parallel.weights.errors import WeightsRefused
from distroml.runtime.parallel.weights.source import Index, unknown

INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 * 1024 * 1024
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

Count = Annotated[int, msgspec.Meta(ge=0, le=2**60)]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]


class _IndexFile(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class SafetensorsSource:
    """The tensors of a safetensors file, or of a folder as Hugging Face writes it, by the names that they have there.

    Args:
        path: a `.safetensors` file, or a folder with one or with several and their `model.safetensors.index.json`.

    Raises:
        WeightsRefused: it is something else (a pickle among them), or damaged; says what to do.
    """

    def __init__(self, path: Path | str) -> None:
        self._files: dict[str, Path] = {}
        self._entries: dict[str, tuple[Path, _Entry, int]] = {}
        self._open: tuple[Path, torch.Tensor] | None = None
        for file, wanted in _files_of(Path(path)).items():
            entries, begin = _read_header(file)
            for name in sorted(entries) if wanted is None else wanted:
                if name not in entries:
                    raise WeightsRefused(f"{INDEX_NAME} says that {name} lies in {file.name}, which does not have it")
                self._entries[name] = (file, entries[name], begin)

    def names(self) -> Sequence[str]:
        """See `WeightSource`."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `WeightSource`."""
        return self._entry(name)[1].shape

    def dtype(self, name: str) -> torch.dtype:
        """See `WeightSource`."""
        return _DTYPES[self._entry(name)[1].dtype]

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """See `WeightSource`; the file is mapped, its pages are read where the slice lies."""
        file, entry, begin = self._entry(name)
        if self._open is None or self._open[0] != file:
            # Private: what somebody writes into the tensor never reaches the file.
            mapped = cast(Any, torch.UntypedStorage).from_file(str(file), shared=False, nbytes=file.stat().st_size)
            self._open = file, cast(Any, torch.empty(0, dtype=torch.uint8)).set_(mapped)
        data = self._open[1][begin + entry.data_offsets[0] : begin + entry.data_offsets[1]]
        dtype = _DTYPES[entry.dtype]
        if not data.numel():
            return torch.empty(entry.shape, dtype=dtype)[index]
        if data.data_ptr() % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(entry.shape)[index]

    def close(self) -> None:
        """Unmap the file."""
        self._open = None

    def _entry(self, name: str) -> tuple[Path, _Entry, int]:
        if name not in self._entries:
            raise unknown(name)
        return self._entries[name]


def _files_of(path: Path) -> Mapping[Path, Sequence[str] | None]:
    """Each file with the names to take from it, None for all."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise _refuse_pickle(path, [path])
        return {path: None}
    if not path.is_dir():
        raise WeightsRefused(f"{path} does not exist; give a .safetensors file or a folder with some")
    index = path / INDEX_NAME
    if index.is_file():
        try:
            named = msgspec.json.decode(index.read_bytes(), type=_IndexFile).weight_map
        except msgspec.MsgspecError as error:
            raise WeightsRefused(f"{index} cannot be read: {error}; fetch it again") from None
        found: dict[Path, list[str]] = {}
        for name, file in named.items():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise WeightsRefused(f"{index} names the file {file!r}, which is no .safetensors file beside it")
            found.setdefault(path / file, []).append(name)
        missing = sorted(file.name for file in found if not file.is_file())
        if missing:
            raise WeightsRefused(f"{path} lacks {', '.join(missing)}, which its index names; fetch them again")
        return found
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return {files[0]: None}
    if files:
        raise WeightsRefused(f"{path} has {len(files)} .safetensors files but no {INDEX_NAME} that says which to take")
    raise _refuse_pickle(path, [file for pattern in _PICKLES for file in sorted(path.glob(pattern))])


def _refuse_pickle(path: Path, pickles: Sequence[Path]) -> WeightsRefused:
    if not pickles:
        return WeightsRefused(f"{path} has no .safetensors file")
    return WeightsRefused(
        f"{pickles[0]} is no .safetensors file: it may be a pickle, which runs whatever code is in it when it is read. "
        "Convert it once where you trust its origin: load it into the model there and write "
        "`safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`, or `model.save_pretrained(folder)`"
    )


def _read_header(file: Path) -> tuple[dict[str, _Entry], int]:
    """The entries, and where in the file their data begins; every range is checked against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise WeightsRefused(f"{file} is no whole safetensors file: its header does not fit; fetch it again")
        header = opened.read(length)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(value, type=_Entry) for name, value in raw.items()}
    except msgspec.MsgspecError as error:
        raise WeightsRefused(f"{file} has a header that cannot be read: {error}; fetch it again") from None
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise WeightsRefused(f"{name} in {file} is {entry.dtype}, which torch cannot read by slice; convert it")
        start, stop = entry.data_offsets
        if stop - start != math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize or 8 + length + stop > size:
            raise WeightsRefused(f"{file} is damaged: {name} has no whole data; fetch it again")
    return entries, 8 + length
