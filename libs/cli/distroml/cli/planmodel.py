"""A user's own model for `distroml plan`: `entry: module:factory` with its `sample`, and `loss` where it has one.

Needs torch, which is imported only when such a model is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distroml.cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from distroml.planner import ModelProfile

_SAMPLE = "`module:function` that returns one microbatch, or a mapping of names to {shape: [2, 128], dtype: int64}"


def profile_of(model: Mapping[str, Any], folder: Path) -> ModelProfile:
    """The profile of the model that a spec in `folder` names.

    Raises:
        UsageError: torch is not installed, there is no such module or name, it fails, or its model cannot be profiled.
    """
    try:
        from distroml.runtime.profile import profile
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            f"`model.entry` runs {model['entry']} to see what it builds, and torch is not installed here",
            hint="pip install 'distroml[torch]', or describe the model in numbers under `model.transformer`",
        ) from error
    with _importable(folder):
        factory = _named("model.entry", str(model["entry"]))
        module = _built(str(model["entry"]), factory)
        sample = _sample(model["sample"])
        loss = _named("model.loss", str(model["loss"])) if "loss" in model else default_loss
        try:
            return profile(module, loss, sample, name=str(model["entry"]))
        except Exception as error:
            raise UsageError(
                f"the model of {model['entry']} cannot be profiled: {type(error).__name__}: {error}",
                hint="check that `model.sample` is what its forward takes, or give `model.loss: module:function`",
            ) from error


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    """Modules beside the spec, and in the working directory, can be imported."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _named(field: str, text: str) -> Callable[..., Any]:
    module, _, name = text.partition(":")
    try:
        found: object = importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"`{field}`: importing {module} failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(f"`{field}`: {module} has no function or class {name}")
    return found


def _built(text: str, factory: Callable[..., Any]) -> Any:
    """The model, without weights where it can be built so."""
    import torch

    try:
        with torch.device("meta"):
            return factory()
    except Exception:
        # Some models look at values while they are built, or load them.
        return _called("model.entry", text, factory)


def _called(field: str, text: str, function: Callable[..., Any]) -> Any:
    try:
        return function()
    except Exception as error:
        raise UsageError(f"`{field}`: {text}() failed: {type(error).__name__}: {error}") from error


def _sample(given: object) -> Any:
    if isinstance(given, str):
        return _called("model.sample", given, _named("model.sample", given))
    if isinstance(given, dict) and given:
        described = cast("dict[object, object]", given)
        return {str(name): _zeros(str(name), one) for name, one in described.items()}
    raise UsageError(f"`model.sample` is {_SAMPLE}")


def _zeros(name: str, given: object) -> torch.Tensor:
    import torch

    fields = cast("dict[str, object]", given) if isinstance(given, dict) else {"shape": given}
    shape, dtype = fields.get("shape"), getattr(torch, str(fields.get("dtype", "int64")), None)
    sizes = [size for size in cast("list[object]", shape) if isinstance(size, int)] if isinstance(shape, list) else []
    if not sizes or len(sizes) != len(cast("list[object]", shape)) or not isinstance(dtype, torch.dtype):
        raise UsageError(f"`model.sample.{name}` is {{shape: [2, 128], dtype: int64}}, not {given!r}")
    return torch.zeros(sizes, dtype=dtype)


def default_loss(model: Callable[..., Any], batch: Any) -> tuple[torch.Tensor, int]:
    """The model's own loss where its output has one, else the sum of its output: what costs the same to compute."""
    import torch

    output = model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss, 1
    for name in ("logits", "last_hidden_state"):
        output = getattr(output, name, output)
    first = cast("tuple[Any, ...]", output)[0] if isinstance(output, tuple) else output
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"the model returned a {type(first).__name__}, from which no loss can be made")
    return first.float().sum(), first.shape[0] if first.dim() else 1
