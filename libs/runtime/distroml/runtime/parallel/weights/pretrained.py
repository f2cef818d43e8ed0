"""Pretrained weights under a model's own names, whatever prefix they were saved with."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.parallel.weights.errors import WeightsMismatch
from distroml.runtime.parallel.weights.renamed import renamed_for
from distroml.runtime.parallel.weights.safetensors import SafetensorsSource
from distroml.runtime.parallel.weights.source import Index, WeightSource, named_tensors, unknown

_ADVICE = (
    "Use the weights of this very architecture; name what shall start fresh with new=; where the model's own library "
    "changes tensors while it loads them, load it there once and save its state_dict as safetensors"
)
# Names that norms had in old files.
_OLD_ENDS = ((".weight", ".gamma"), (".bias", ".beta"))


class Pretrained:
    """A file's tensors under the names of a model; what the file need not have comes from the first weights.

    Attributes:
        unused: names in the file that the model has no use for.
        fresh: names of the model that come from `base`.
    """

    def __init__(
        self,
        file: WeightSource,
        base: WeightSource | None,
        places: Mapping[str, str],
        fresh: Sequence[str],
        order: Sequence[str],
    ) -> None:
        self._file, self._base, self._places, self._order = file, base, places, tuple(order)
        used = set(places.values())
        self.fresh = tuple(fresh)
        self.unused = tuple(name for name in file.names() if name not in used)

    def names(self) -> Sequence[str]:
        """See `WeightSource`."""
        return self._order

    def shape(self, name: str) -> tuple[int, ...]:
        """See `WeightSource`."""
        source, there = self._where(name)
        return source.shape(there)

    def dtype(self, name: str) -> torch.dtype:
        """See `WeightSource`."""
        source, there = self._where(name)
        return source.dtype(there)

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """See `WeightSource`."""
        source, there = self._where(name)
        return source.read(there, index)

    def close(self) -> None:
        """Close the file and the first weights."""
        self._file.close()
        if self._base is not None:
            self._base.close()

    def _where(self, name: str) -> tuple[WeightSource, str]:
        if name in self._places:
            return self._file, self._places[name]
        if self._base is None or name not in self.fresh:
            raise unknown(name)
        return self._base, name


def pretrained(
    path: Path | str | SafetensorsSource,
    model: nn.Module,
    base: WeightSource | None = None,
    *,
    new: Sequence[str] = (),
) -> Pretrained:
    """The weights in `path` for `model`, which may be on `meta`.

    A name may lack the prefix of the model's base, or have it in excess, as Hugging Face's files do; of tied
    parameters the file needs one. Buffers that are not saved come from `base`.

    Args:
        path: see `SafetensorsSource`.
        model: the whole, unparallelised model.
        base: first weights, for what the file need not have.
        new: patterns (`classifier.*`) of parameters that may be missing in the file, and then are those of `base`.

    Raises:
        WeightsRefused: the file cannot be read.
        WeightsMismatch: names are missing or shapes differ; says which and what is there of a similar name.
    """
    file = renamed_for(model, path if isinstance(path, SafetensorsSource) else SafetensorsSource(path))
    there = frozenset(file.names())
    tensors = named_tensors(model)
    ties: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        ties.setdefault(id(tensor), []).append(name)
    saved = frozenset(clean(name) for name in model.state_dict(keep_vars=True))
    prefix = getattr(model, "base_model_prefix", "")
    places: dict[str, str] = {}
    fresh: list[str] = []
    problems: list[str] = []
    missing: list[str] = []
    for name, tensor in tensors.items():
        found = next((one for one in _candidates(ties[id(tensor)], name, prefix) if one in there), None)
        if found is not None:
            places[name] = found
            if (shape := file.shape(found)) != tuple(tensor.shape):
                problems.append(f"{name} has the shape {shape} there and {tuple(tensor.shape)} in the model")
        elif base is not None and (name not in saved or any(fnmatch.fnmatchcase(name, one) for one in new)):
            fresh.append(name)
        else:
            missing.append(name)
    result = Pretrained(file, base, places, fresh, tuple(tensors))
    for name in missing:
        similar = difflib.get_close_matches(name, result.unused, 1)
        problems.append(f"{name} is missing" + (f" (there is {similar[0]})" if similar else ""))
    if problems:
        raise WeightsMismatch(problems, _ADVICE)
    return result


def _candidates(ties: Sequence[str], name: str, prefix: str) -> Iterator[str]:
    """What the tensor may be called in a file, the likeliest first."""
    own = [name, *(other for other in ties if other != name)]
    changed = list(own)
    if prefix:
        changed += [one.removeprefix(f"{prefix}.") for one in own if one.startswith(f"{prefix}.")]
        changed += [f"{prefix}.{one}" for one in own]
    yield from changed
    for one in changed:
        for now, before in _OLD_ENDS:
            if one.endswith(now):
                yield one.removesuffix(now) + before
