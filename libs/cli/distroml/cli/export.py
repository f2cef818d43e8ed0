"""A checkpoint's model as safetensors files, without torch: every chunk verified, one tensor at a time in memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from distroml.cli.errors import CliError, UsageError
from distroml.manifest import (
    BytesEntry,
    ChunkRef,
    Keys,
    Manifest,
    ManifestError,
    TensorEntry,
    damage_of,
    item_bytes,
    read_manifest,
)
from distroml.objectstore import NoSuchObject, ObjectDamaged, ObjectStore

SHARD_BYTES = 5_000_000_000
"""Tensors go to the next file where one would become larger."""

CONFIG_KEY = "model_config"
"""Where the runtime keeps the configuration of a model that has one."""

LOCAL_JOB = "local"
"""The job's name in the folder of a run that no agent started."""

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        step: the checkpoint's.
        folder: where it lies now.
        files: names in it.
        tensors: how many.
        size_bytes: of all tensors.
    """

    step: int
    folder: Path
    files: tuple[str, ...]
    tensors: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    entries: tuple[TensorEntry, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * item_bytes(self.dtype)


def export_checkpoint(
    store: ObjectStore,
    job: str,
    manifest_hash: str,
    folder: Path,
    *,
    hugging_face: bool = False,
    config: str = "",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the model of a checkpoint into a new folder, which appears when it is complete.

    Args:
        store: where the checkpoint lies.
        job: whose it is.
        manifest_hash: which one.
        folder: absent, or empty.
        hugging_face: with `config.json`, as `from_pretrained` reads it.
        config: that file's content; empty for the one saved with the checkpoint.
        shard_bytes: most bytes of tensors in a file (a larger tensor has one for itself).
        progress: called with bytes done and in all.

    Raises:
        UsageError: the folder is taken, or the checkpoint lacks what was asked for.
        CliError: the checkpoint is damaged, or the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", hint="give a new folder with --to")
    reader = _Reader(store, job, manifest_hash)
    tensors = _model_of(reader.manifest)
    files: dict[str, bytes] = {}
    if hugging_face:
        files["config.json"] = (config or reader.config()).encode()
    total, done = sum(tensor.size for tensor in tensors), 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shards = list(_shards(tensors, shard_bytes))
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with (partial / name).open("wb") as file:
                file.write(_header(shard))
                for tensor in shard:
                    for part in reader.content(tensor):
                        file.write(part)
                        done += len(part)
                        progress(done, total)
                _settle(file)
            places |= {tensor.name: name for tensor in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            files["model.safetensors.index.json"] = json.dumps(index, indent=2).encode()
        for name, data in files.items():
            (partial / name).write_bytes(data)
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise CliError(
            f"cannot write to {folder}: {error.strerror or error}", hint="free space, or another --to"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = tuple(sorted({*places.values(), *files}))
    return Exported(step=reader.manifest.step, folder=folder, files=written, tensors=len(tensors), size_bytes=total)


def local_manifest(store: ObjectStore, folder: Path, step: int) -> str:
    """The manifest of a stand-alone run's checkpoint, the newest where `step` is 0; raises `UsageError`."""
    prefix = f"{Keys(LOCAL_JOB).root}committed/"
    found: dict[int, str] = {}
    after = ""
    while page := store.list(prefix, after=after):
        after = page[-1].key
        found |= {int(info.key[len(prefix) :]): info.key for info in page}
    if not found:
        raise UsageError(f"{folder} has no checkpoint", hint="give a folder that a run wrote: .distroml/runs/SCRIPT")
    if step and step not in found:
        raise UsageError(f"{folder} has no checkpoint of step {step}", hint=f"it has {sorted(found)}")
    return store.get(found[step or max(found)]).decode("ascii")


class _Reader:
    """Verified bytes of one checkpoint."""

    def __init__(self, store: ObjectStore, job: str, manifest_hash: str) -> None:
        self._store = store
        try:
            self.manifest = read_manifest(store.get(Keys(job).manifest(manifest_hash)), manifest_hash)
        except (NoSuchObject, ObjectDamaged, ManifestError) as error:
            raise _damaged(str(error)) from error

    def config(self) -> str:
        """The configuration that was saved with the model."""
        for entry in self.manifest.entries:
            if isinstance(entry, BytesEntry) and entry.path == (CONFIG_KEY,):
                return msgspec.msgpack.decode(b"".join(self._chunks(entry.chunks)), type=str)
        raise UsageError(
            "the checkpoint has no Hugging Face configuration: its model has no `config.to_dict()`",
            hint="give one with --hf-config FILE, or leave out --format hf",
        )

    def content(self, tensor: _Tensor) -> Iterator[bytes | memoryview]:
        """The whole tensor's bytes, in order."""
        if all(entry.sizes[1:] == tensor.shape[1:] for entry in tensor.entries):
            for entry in tensor.entries:
                yield from self._chunks(entry.chunks)
            return
        whole = bytearray(tensor.size)
        for entry in tensor.entries:
            _put(whole, tensor, entry, b"".join(self._chunks(entry.chunks)))
        yield memoryview(whole)

    def _chunks(self, chunks: Sequence[ChunkRef]) -> Iterator[bytes]:
        for chunk in chunks:
            object = self.manifest.objects[chunk.object]
            try:
                data = self._store.get(object.key, offset=chunk.offset, length=chunk.length)
            except (NoSuchObject, ObjectDamaged) as error:
                raise _damaged(str(error)) from error
            if damage := damage_of(object, chunk, data):
                raise _damaged(damage.message)
            yield data


def _damaged(message: str) -> CliError:
    return CliError(f"the checkpoint is damaged: {message}", hint="export an older one with --step")


def _model_of(manifest: Manifest) -> list[_Tensor]:
    found: dict[str, list[TensorEntry]] = {}
    for entry in manifest.entries:
        if isinstance(entry, TensorEntry) and len(entry.path) == 2 and entry.path[0] == "model":
            found.setdefault(str(entry.path[1]), []).append(entry)
    if not found:
        raise UsageError("the checkpoint has no tensor under `model`", hint="was it saved by distroml's Trainer?")
    tensors: list[_Tensor] = []
    for name, entries in sorted(found.items()):
        first = entries[0]
        if first.dtype not in _DTYPES:
            raise UsageError(f"{name} is {first.dtype}, which safetensors cannot hold", hint="convert it before saving")
        held = sorted((entry for entry in entries if math.prod(entry.sizes)), key=lambda entry: entry.offsets)
        tensors.append(_Tensor(name, first.dtype, first.shape, tuple(held)))
    return tensors


def _shards(tensors: Sequence[_Tensor], shard_bytes: int) -> Iterator[list[_Tensor]]:
    shard: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.size > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.size
    yield shard


def _header(shard: Sequence[_Tensor]) -> bytes:
    """What a safetensors file begins with; padded so that the data are aligned."""
    described: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in shard:
        described[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (place, place + tensor.size),
        }
        place += tensor.size
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _put(whole: bytearray, tensor: _Tensor, entry: TensorEntry, data: bytes) -> None:
    """Copy a slice to its place in the whole tensor, run by run."""
    item = item_bytes(tensor.dtype)
    dims = len(tensor.shape)
    strides = [math.prod(tensor.shape[dim + 1 :]) for dim in range(dims)]
    # From this dimension on, the slice's elements lie side by side in the whole tensor too.
    inner = dims - 1
    while inner > 0 and entry.sizes[inner] == tensor.shape[inner]:
        inner -= 1
    run = math.prod(entry.sizes[inner:]) * item
    target, source = memoryview(whole), memoryview(data)
    for number in range(math.prod(entry.sizes[:inner])):
        place, rest = entry.offsets[inner] * strides[inner], number
        for dim in range(inner - 1, -1, -1):
            rest, index = divmod(rest, entry.sizes[dim])
            place += (entry.offsets[dim] + index) * strides[dim]
        target[place * item : place * item + run] = source[number * run : (number + 1) * run]


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
