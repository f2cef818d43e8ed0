"""Plans for machines and what runs under them taught, kept from one run to the next."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import nn

from distroml.planner import (
    Corrections,
    Measurement,
    Plan,
    PlanRefused,
    Prediction,
    contradicts,
    learn,
)
from distroml.runtime.caching import discard, write_down
from distroml.runtime.elastic import World
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.profile.probe import Probed
from distroml.workerlink.cores import usable_cores

Kept = TypeVar("Kept")

# Another one where plans are priced or surveyed in another way: what was kept then is no answer any more.
_METHOD = 5


@dataclass(frozen=True, slots=True)
class LivePlan:
    """A plan for live processes; equal on all ranks.

    Attributes:
        plan: the chosen one.
        inputs: what it was chosen for and with, as JSON.
        prediction: of it; None where nothing could be predicted.
        best: the next best plans with prediction and reason, as JSON.
        alternatives: all of them, as JSON.
        drawing: what a picture of the plan shows (`distroml.planner.picture`), as JSON; empty where nothing could be
            predicted.
        links: the probe, where one was made or used.
        corrections: what earlier runs had taught.
        key: of this model on these machines, under which measurements are remembered.
        searched: whether the planner chose the plan; else it was given, and only predicted.
    """

    plan: Plan
    inputs: str = "{}"
    prediction: Prediction | None = None
    best: str = "[]"
    alternatives: str = "[]"
    drawing: str = ""
    links: Probed | None = None
    corrections: Corrections = field(default_factory=Corrections)
    key: str = ""
    searched: bool = True


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where what was measured of machines and models is kept: `$DISTROML_CACHE`, or the user's cache folder."""
    base = environ.get("DISTROML_CACHE") or Path(environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "distroml"
    return Path(base) / "plans"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        # A container may run as a user that its system does not know.
        return Path(tempfile.gettempdir()) / f"home-of-{os.getuid()}"


def key_of(
    model: nn.Module, sample: Any, global_batch: int, microbatch: int | None, how: str, question: str, world: World
) -> str:
    """Tells models, their code, batches, ways of training (`how`), questions and machines apart."""
    digest = hashlib.sha256()
    for part in (repr(model), global_batch, microbatch, how, question, torch.__version__, usable_cores()):
        digest.update(f"{part}\n".encode())
    digest.update(f"{world.world_size} {world.device.type} {os.uname().nodename} {_METHOD}".encode())
    leaves, _ = trees.flatten(sample)
    for path, leaf in leaves.items():
        digest.update(f"{path}{tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf}".encode())
    for module in sorted({type(one).__module__ for one in model.modules()}):
        source = inspect.getsourcefile(sys.modules[module]) if module in sys.modules else None
        if source is not None and not module.startswith("torch."):
            digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:20]


def read(cache: Path, key: str) -> LivePlan | None:
    """What was chosen before, or None."""
    return kept(cache, "plan", key, LivePlan)


def write(cache: Path, live: LivePlan) -> None:
    """Keep a choice; which links it rests on is kept by the probe itself."""
    keep(cache, "plan", live.key, replace(live, links=None))


def corrections_of(cache: Path, key: str) -> Corrections:
    """What earlier runs taught."""
    return kept(cache, "corrections", key, Corrections) or Corrections()


def keep(cache: Path, what: str, key: str, value: object) -> None:
    """Write `value` down under a kind and a key."""
    write_down(_path(cache, what, key), msgspec.json.encode(value))


def kept(cache: Path, what: str, key: str, type_: type[Kept]) -> Kept | None:
    """What `keep` wrote, or None: it is not there, or of another release."""
    try:
        return msgspec.json.decode(_path(cache, what, key).read_bytes(), type=type_)
    except (OSError, msgspec.MsgspecError, PlanRefused):
        return None


def remember(live: LivePlan, measured: Measurement, cache: Path) -> tuple[str, str]:
    """Keep what a run taught; where it contradicts the prediction, the next plan is searched anew with it.

    Returns:
        In which way it contradicts, and what becomes of it; both "" where the prediction stands.
    """
    if live.prediction is None:
        return "", ""
    how = contradicts(live.prediction, measured)
    if not how:
        return "", ""
    taught = learn(live.prediction, measured, live.corrections)
    keep(cache, "corrections", live.key, taught)
    discard(_path(cache, "plan", live.key))
    return how, "the next generation is planned with it" if live.searched else "the next prediction reckons with it"


def _path(cache: Path, what: str, key: str) -> Path:
    return cache / f"{what}-{key}.json"
