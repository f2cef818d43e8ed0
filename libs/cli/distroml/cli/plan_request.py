"""What a spec asks the planner: the model's profile, the machines, the batch and how to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import psutil

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import planfile, planmodel
from distroml.cli.client import call
from distroml.cli.errors import CliError
from distroml.cli.live_cluster import LiveCluster, cluster_of
from distroml.planner import (
    Choice,
    Explainer,
    ModelProfile,
    PlanRefused,
    Pricer,
    Topology,
    Training,
    Wish,
    explain,
    search,
    transformer_profile,
)


@dataclass(frozen=True)
class Request:
    """Everything that a plan depends on. `notes` are for people: what was taken for granted."""

    name: str
    profile: ModelProfile
    topology: Topology
    training: Training
    global_batch: int
    wish: Wish
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def choice(self) -> Choice:
        """The best plan; raises `CliError` where there is none, with what would make one fit."""
        try:
            return search(self.profile, self.topology, self.training, self.global_batch, wish=self.wish)
        except PlanRefused as error:
            text = str(error)
            raise CliError(text if text.startswith("no plan") else f"no plan is possible: {text}") from error

    @cached_property
    def explainer(self) -> Explainer:
        """Answers questions about `choice`."""
        return explain(self.profile, self.topology, self.training, self.global_batch, self.choice, wish=self.wish)

    def pricer(self) -> Pricer:
        """Prices many plans."""
        return Pricer(self.profile, self.topology, self.training, self.global_batch)


_UNMEASURED = (
    "encoding and decoding is taken to be as fast as memory; measure it by `distroml bench comm`, and give its work "
    "per MiB as `training.compress_ms_per_mib`"
)


def requested(
    path: Path, data: Path, *, live: bool, compress: str = "", compress_shard: str = "", sync_every: int = 0
) -> Request:
    """What the spec at `path` asks. With `live`, the control plane on the folder `data` says how many machines.

    `compress`, `compress_shard` and `sync_every` stand instead of what the spec has under `training`.

    Raises:
        UsageError: the spec cannot be read; names every mistake with its line.
        Unreachable: `live`, and no control plane answers.
    """
    read = planfile.read(path)
    found = _live(read, data) if live else None
    better = {"compress": compress, "compress_shard": compress_shard, "sync_every": sync_every}
    asked = {name: value for name, value in better.items() if value}
    spec = read.spec(live=found.fields if found is not None else None, training=asked)
    assert spec.topology is not None, "read_spec wants a cluster"
    if spec.transformer is not None:
        profile = transformer_profile(spec.transformer)
    else:
        profile = planmodel.profile_of(read.values["model"], path.parent)
    notes = found.notes if found is not None else ()
    packed = spec.training.compressing
    if (packed.on or packed.shard != "none") and not packed.tried:
        notes += (_UNMEASURED,)
    return Request(
        name=profile.name,
        profile=profile,
        topology=spec.topology,
        training=spec.training,
        global_batch=spec.global_batch,
        wish=Wish(recompute=spec.recompute),
        notes=notes,
    )


def _live(read: planfile.PlanFile, data: Path) -> LiveCluster:
    answer = call(data, lambda plane: plane.jobs.ListNodes(jobs_pb2.ListNodesRequest()))
    given: object = read.values.get("cluster")
    fields = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    return cluster_of(answer.nodes, fields, memory_bytes=psutil.virtual_memory().total)
