"""Files of Hugging Face models that rename or join tensors while they load, read under the names of today's model.

Transformers keeps, per architecture, the patterns by which a file's names became the model's, and the operations that
join what a file has apart (the experts of a mixture). They are used as its own loader uses them; nobody else documents
them, so they are used in this file only, and a test compares with `from_pretrained`.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from distroml.runtime.parallel.weights.source import Index, WeightSource, unknown


@dataclass(frozen=True, slots=True)
class _Join:
    """Several of the file's tensors that together give one or several of the model's."""

    converter: Any
    target: str
    parts: tuple[tuple[str, str], ...]


class RenamedSource:
    """The file's tensors under the model's names; of a joined one the whole is made for each read of a part.

    Args:
        file: what the names and tensors come from.
        model: for the operations that ask for it.
        names: the model's name to the file's.
        joins: what is joined.
    """

    def __init__(self, file: WeightSource, model: nn.Module, names: Mapping[str, str], joins: Sequence[_Join]) -> None:
        self._file, self._model, self._plain = file, model, dict(names)
        self._joined: dict[str, tuple[_Join, torch.Tensor]] = {}
        for join in joins:
            for name, blank in self._convert(join, blank=True).items():
                self._joined[name] = join, blank
        self._last: tuple[_Join, Mapping[str, torch.Tensor]] | None = None

    def names(self) -> Sequence[str]:
        """See `WeightSource`."""
        return (*self._plain, *self._joined)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `WeightSource`."""
        if name in self._joined:
            return tuple(self._joined[name][1].shape)
        return self._file.shape(self._there(name))

    def dtype(self, name: str) -> torch.dtype:
        """See `WeightSource`."""
        return self._joined[name][1].dtype if name in self._joined else self._file.dtype(self._there(name))

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """See `WeightSource`; what was joined last is kept for the next part of it."""
        if name not in self._joined:
            return self._file.read(self._there(name), index)
        join = self._joined[name][0]
        if self._last is None or self._last[0] is not join:
            self._last = None
            self._last = join, self._convert(join, blank=False)
        return self._last[1][name][index]

    def close(self) -> None:
        """Close the file, and drop what was joined."""
        self._last = None
        self._file.close()

    def _there(self, name: str) -> str:
        if name not in self._plain:
            raise unknown(name)
        return self._plain[name]

    def _convert(self, join: _Join, *, blank: bool) -> dict[str, torch.Tensor]:
        converter = copy.deepcopy(join.converter)
        for pattern, key in join.parts:
            converter.add_tensor(join.target, key, pattern, self._blank(key) if blank else self._file.read(key))
        with torch.no_grad():
            made = converter.convert(join.target, model=self._model, config=cast(Any, self._model).config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _blank(self, key: str) -> torch.Tensor:
        return torch.empty(self._file.shape(key), dtype=self._file.dtype(key), device="meta")


def renamed_for(model: nn.Module, file: WeightSource) -> WeightSource:
    """`file` under the names of `model`, where that is a Hugging Face model that renames; else `file` itself."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, cast(type, cast(Any, transformers).PreTrainedModel)):
        return file
    loading = cast(Any, importlib.import_module("transformers.core_model_loading"))
    mapping = cast(Any, importlib.import_module("transformers.conversion_mapping"))
    steps = cast("list[Any]", mapping.get_model_conversion_mapping(model))
    renamings = [step for step in steps if isinstance(step, loading.WeightRenaming)]
    converters = [step for step in steps if isinstance(step, loading.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = cast("dict[str, torch.Tensor]", model.state_dict())
    prefix = cast(str, cast(Any, model).base_model_prefix)
    names: dict[str, str] = {}
    parts: dict[str, list[tuple[str, str]]] = {}
    chosen: dict[str, Any] = {}
    # In this order a list of experts is joined as it was taken apart.
    for key in sorted(file.names(), key=loading.dot_natural_key):
        name, pattern = loading.rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = key, None
        if pattern is None or name not in known:
            names[name if name in known else key] = key
        else:
            parts.setdefault(name, []).append((pattern, key))
            chosen.setdefault(name, by_pattern[pattern])
    if not parts and all(name == key for name, key in names.items()):
        return file
    joins = [_Join(chosen[target], target, tuple(found)) for target, found in parts.items()]
    return RenamedSource(file, model, names, joins)
