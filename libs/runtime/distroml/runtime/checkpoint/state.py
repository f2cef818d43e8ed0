"""The live state of model and optimizer as one nested dict, and a checkpoint back into it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from distroml.manifest import Manifest, TensorEntry
from distroml.objectstore import ObjectStore
from distroml.runtime.checkpoint.errors import StateMismatch
from distroml.runtime.checkpoint.lenient import as_saved, drop_unsaved
from distroml.runtime.checkpoint.plain import decode_plain
from distroml.runtime.checkpoint.planner import PlainLoadPlanner, State
from distroml.runtime.checkpoint.reader import ManifestReader
from distroml.runtime.checkpoint.tensors import dtype_of
from distroml.runtime.checkpoint.tree import Path
from distroml.runtime.checkpoint.whole import NOTHING_ELSE, Whole, clean

CONFIG_KEY = "model_config"
"""Where `capture` puts the configuration of a model that has one, as JSON; `distroml checkpoints export` reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a load found beside the state.

    Attributes:
        step: the optimizer step at which it was saved.
        generation: the generation that saved it.
        world_size: how many ranks saved it.
        extra: the small state of the asked rank, of rank 0 where that rank did not exist then.
        extras: the small state of every rank that saved it.
    """

    step: int
    generation: int
    world_size: int
    extra: object
    extras: tuple[object, ...]


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, whole: Whole = NOTHING_ELSE, **more: object
) -> State:
    """The state to save: `{"model": …, "optimizer": …, **more}`. Its tensors are the live ones, nothing is copied.

    Names are those of the bare model: prefixes of DistributedDataParallel, torch.compile and activation
    checkpointing are taken off. Parameters without optimizer state have none in the checkpoint either. Where the
    model is a part of `whole`, an `Agreement` makes of it what a `Saver` takes.
    """
    bare = unwrap(model)
    state: State = {"model": {clean(name): value for name, value in bare.state_dict().items()}}
    if optimizer is not None:
        names = _names(bare, whole)
        part: dict[str, object] = {"param_groups": [_group(group, names) for group in optimizer.param_groups]}
        per_parameter = {
            names[parameter]: dict(values) for parameter, values in _live_state(optimizer).items() if values
        }
        if per_parameter:
            part["state"] = per_parameter
        state["optimizer"] = part
    if config := _config_of(bare):
        state[CONFIG_KEY] = config
    for key, value in more.items():
        state[key] = value
    return state


def restore(
    store: ObjectStore,
    job: str,
    manifest_hash: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    rank: int = 0,
    more: MutableMapping[str, object] | None = None,
    threads: int = 4,
    whole: Whole = NOTHING_ELSE,
    optional: Collection[str] = (),
    own: Path = (),
) -> Restored:
    """Load a checkpoint in place: parameters, buffers, optimizer state and its groups' values, bit for bit.

    An optimizer that never stepped gets its state from the checkpoint; state that the checkpoint does not have is
    dropped. Works at any world size and under any plan, whatever saved it, without a process group.

    Args:
        store: where the checkpoint lies.
        job: whose it is.
        manifest_hash: which one.
        model: filled in place; may be wrapped.
        optimizer: of this model; None loads the model only.
        rank: whose `extra` to return.
        more: further state under the names given to `capture`; tensors are filled in place, plain values replaced.
        threads: reads at a time.
        whole: the model of which `model` is a part; other parts may be in the checkpoint.
        optional: keys of `more` whose dicts may have more than the checkpoint: what is not there is taken out of them.
        own: a key and a rank: what only that rank saved under the key is put into `more`, as it was saved.

    Raises:
        CorruptChunk: any byte is not what was saved; the state may be half overwritten.
        StateMismatch: the checkpoint does not fit; parameters are unchanged, the optimizer may have lost its state.
        ObjectStoreError: the store did not answer.
    """
    reader = ManifestReader(store, job, manifest_hash, threads=threads)
    bare = unwrap(model)
    if optimizer is not None:
        as_one_value = _shape_optimizer(bare, optimizer, reader.manifest, whole)
        state = capture(bare, optimizer, whole=whole)
        if as_one_value:
            cast("dict[str, object]", state["optimizer"])["state"] = {}
    else:
        state = capture(bare)
    # The model that is there has its own already.
    state.pop(CONFIG_KEY, None)
    for key, value in (more or {}).items():
        state[key] = value
    drop_unsaved(state, optional, reader.manifest)
    if saved := as_saved(reader.manifest, own) if own else {}:
        state[str(own[0])] = {own[1]: saved}
    _load(reader, state, whole)
    _load_extra_state(bare, cast("Mapping[str, object]", state["model"]))
    if optimizer is not None:
        _load_optimizer_values(bare, optimizer, cast("Mapping[str, object]", state["optimizer"]), whole)
    if more is not None:
        more.update({key: state.get(key, {}) for key in (*more, *map(str, own[:1]))})
    return _restored(reader.manifest, rank)


def load_into(
    store: ObjectStore, job: str, manifest_hash: str, state: State, *, rank: int = 0, threads: int = 4
) -> Restored:
    """Load a checkpoint into a state dict: tensors in place, plain values replaced; raises as `restore` does."""
    reader = ManifestReader(store, job, manifest_hash, threads=threads)
    _load(reader, state)
    return _restored(reader.manifest, rank)


def _config_of(model: nn.Module) -> str:
    """What a Hugging Face model's `config.json` says, so that an export needs no more than the checkpoint."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict):
        return ""
    try:
        # FSDP puts its own class before the model's.
        kind = type(model).__name__ if not isinstance(model, FSDPModule) else type(model).__mro__[2].__name__
        return json.dumps({**cast("dict[str, object]", to_dict()), "architectures": [kind]}, default=str, indent=2)
    except (TypeError, ValueError):
        # A configuration of another kind; it never keeps a checkpoint from being saved.
        return ""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while True:
        attribute = "module" if isinstance(model, DistributedDataParallel) else "_orig_mod"
        inner = cast(object, getattr(model, attribute, None))
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _load(reader: ManifestReader, state: State, whole: Whole = NOTHING_ELSE) -> None:
    planner = PlainLoadPlanner(whole)
    planner.set_up_planner(state, reader.read_metadata())
    with torch.no_grad():
        reader.read_data(planner.create_local_plan(), planner).wait()


def _restored(manifest: Manifest, rank: int) -> Restored:
    extras = tuple(decode_plain(extra) if extra else None for extra in manifest.extras)
    return Restored(
        step=manifest.step,
        generation=manifest.generation,
        world_size=manifest.world_size,
        extra=extras[rank if rank < len(extras) else 0],
        extras=extras,
    )


def _names(model: nn.Module, whole: Whole) -> dict[nn.Parameter, str]:
    """Names as in the whole model: of a tied parameter the first there, even where this rank has only another."""
    named = ((clean(name), parameter) for name, parameter in model.named_parameters())
    return {parameter: whole.first.get(name, name) for name, parameter in named}


def _group(group: Mapping[str, object], names: Mapping[nn.Parameter, str]) -> dict[str, object]:
    parameters = cast("list[nn.Parameter]", group["params"])
    foreign = [parameter for parameter in parameters if parameter not in names]
    if foreign:
        raise StateMismatch([f"the optimizer holds {len(foreign)} parameters that are not the model's"])
    return {**group, "params": [names[parameter] for parameter in parameters]}


def _live_state(optimizer: torch.optim.Optimizer) -> MutableMapping[nn.Parameter, MutableMapping[str, object]]:
    return cast("MutableMapping[nn.Parameter, MutableMapping[str, object]]", optimizer.state)


def _shape_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, manifest: Manifest, whole: Whole) -> bool:
    """Give the optimizer exactly the state that the checkpoint has, with tensors still to be filled.

    Making the tensors from the manifest spares a step with zero gradients, which not every optimizer survives
    unchanged, and keeps state that an optimizer holds in another dtype than its parameter. Returns whether the
    checkpoint has the state of all parameters as one value, which is so where none of it is a tensor.
    """
    parameters = {name: parameter for parameter, name in _names(model, whole).items()}
    group_of = {
        cast(nn.Parameter, parameter): cast("Mapping[str, object]", group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    live, wanted = _live_state(optimizer), cast("dict[nn.Parameter, dict[str, object]]", {})
    for entry in manifest.entries:
        if entry.path[:2] != ("optimizer", "state") or len(entry.path) == 2:
            continue
        name = str(entry.path[2])
        parameter = parameters.get(name)
        if parameter is None and whole.has(entry.path):
            continue
        if parameter is None or parameter not in group_of:
            raise StateMismatch([f"the checkpoint has optimizer state of {name}, which the optimizer does not hold"])
        values = wanted.setdefault(parameter, {})
        if len(entry.path) == 4 and isinstance(entry, TensorEntry):
            key = str(entry.path[3])
            values[key] = _like(entry, parameter, live.get(parameter, {}).get(key), group_of[parameter])
        else:
            values[str(entry.path[3]) if len(entry.path) > 3 else ""] = None
    live.clear()
    live.update(wanted)
    return any(entry.path == ("optimizer", "state") for entry in manifest.entries)


def _like(entry: TensorEntry, parameter: nn.Parameter, live: object, group: Mapping[str, object]) -> torch.Tensor:
    dtype = dtype_of(entry.dtype)
    if isinstance(live, torch.Tensor) and live.dtype == dtype and tuple(live.shape) == entry.shape:
        return live
    if entry.shape == tuple(parameter.shape) and entry.path[-1] != "step":
        # Same placement and layout as the parameter, as the optimizer itself makes them.
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)
    # torch keeps the step count of an optimizer on the CPU unless its kernels read it there.
    on_device = bool(entry.shape) or bool(group.get("capturable")) or bool(group.get("fused"))
    return torch.empty(entry.shape, dtype=dtype, device=parameter.device if on_device else "cpu")


def _load_optimizer_values(
    model: nn.Module, optimizer: torch.optim.Optimizer, loaded: Mapping[str, object], whole: Whole
) -> None:
    """Plain values of the loaded optimizer part into the live one; its tensors are filled already."""
    names = _names(model, whole)
    parameters = {name: parameter for parameter, name in names.items()}
    live = _live_state(optimizer)
    for name, values in cast("Mapping[str, Mapping[str, object]]", loaded.get("state", {})).items():
        if name in parameters:
            live[parameters[name]] = dict(values)
        elif name not in whole.place:
            raise StateMismatch([f"the checkpoint has optimizer state of {name}, which the model does not hold"])
    groups = cast("list[dict[str, object]]", loaded["param_groups"])
    here = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    there = [
        [name for name in cast("list[str]", group["params"]) if name in parameters or name not in whole.place]
        for group in groups
    ]
    if [sorted(group) for group in there] != [sorted(group) for group in here]:
        raise StateMismatch(["the optimizer's parameter groups hold other parameters than in the checkpoint"])
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in values.items() if key != "params"})


def _load_extra_state(model: nn.Module, loaded: Mapping[str, object]) -> None:
    """Hand `_extra_state` values, which are no tensors, to the modules that made them."""
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        key = clean(f"{name}._extra_state" if name else "_extra_state")
        if key in loaded and not isinstance(loaded[key], torch.Tensor):
            module.set_extra_state(loaded[key])
