"""The plan: how a model's training is spread over the workers of a generation, and why so."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Literal, get_args

Axis = Literal["pp", "dp_replicate", "dp_shard", "tp"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
Recompute = Literal["none", "selective", "full"]

AXES: tuple[Axis, ...] = get_args(Axis)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
DEFAULT_BUCKET_MB = 8.0


class PlanRefused(ValueError):
    """The wanted plan cannot be made; the message says why, and the nearest thing that works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Mesh, pipeline, microbatch and memory choices of one generation. Equal inputs give equal plans on every rank.

    Attributes:
        dp_replicate: ranks that hold whole copies of what they hold (DDP).
        dp_shard: ranks that share parameters, gradients and optimizer state among them (FSDP).
        tp: ranks that split the inside of layers.
        pp: ranks that split the chain of blocks.
        order: the axes from outermost to innermost: a rank is the row-major place in the mesh of this order, so
            that the last axis joins neighbouring ranks.
        microbatch: samples of one forward pass on one data-parallel rank; None: a rank's whole part at once.
        grad_accum_steps: microbatches that a data-parallel rank accumulates in one step (at most).
        schedule: order of forward and backward passes of a pipeline; of no meaning where `pp` is 1.
        stages: blocks of the chain in each stage, `pp` times an equal number of entries (more than one per rank are
            chunks: stage `i` lies on pp coordinate `i % pp`); empty where `pp` is 1.
        recompute: what a backward pass computes again: nothing, what is cheap, or whole blocks.
        reshard_after_forward: free gathered parameters after the forward pass; of no meaning where `dp_shard` is 1.
        sequence_parallel: split along the sequence what `tp` would otherwise hold as copies.
        bucket_mb: size of one exchange of gradients along `dp_replicate`, in MiB.
        reasons: one line for each choice that somebody may ask about.

    Raises:
        PlanRefused: a value is out of its range, or the values contradict one another.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    order: tuple[Axis, ...] = AXES
    microbatch: int | None = None
    grad_accum_steps: int = 1
    schedule: Schedule = "1f1b"
    stages: tuple[int, ...] = ()
    recompute: Recompute = "none"
    reshard_after_forward: bool = True
    sequence_parallel: bool = False
    bucket_mb: float = DEFAULT_BUCKET_MB
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = {**self.mesh, "grad_accum_steps": self.grad_accum_steps, "bucket_mb": self.bucket_mb}
        sizes |= {} if self.microbatch is None else {"microbatch": self.microbatch}
        for name, value in sizes.items():
            if not value > 0:
                raise PlanRefused(f"{name} must be above 0, got {value}")
        if sorted(self.order) != sorted(AXES):
            raise PlanRefused(f"order must name each of {', '.join(AXES)} once, got {', '.join(self.order)}")
        for name, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("recompute", self.recompute, RECOMPUTE),
        ):
            if value not in known:
                raise PlanRefused(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.pp == 1 and self.stages:
            raise PlanRefused(f"stages={self.stages} cut the model, but pp=1 keeps it whole")
        if self.stages and (len(self.stages) % self.pp or min(self.stages) < 0):
            raise PlanRefused(f"{len(self.stages)} stages cannot be dealt out evenly to pp={self.pp} ranks")
        if self.chunks > 1 and self.schedule not in ("interleaved", "zero_bubble"):
            raise PlanRefused(f"{self.chunks} stages per rank need schedule=interleaved, not {self.schedule}")

    @property
    def mesh(self) -> dict[Axis, int]:
        """Axis name to size."""
        return {"pp": self.pp, "dp_replicate": self.dp_replicate, "dp_shard": self.dp_shard, "tp": self.tp}

    @property
    def mesh_text(self) -> str:
        """The degrees above 1 as a plan's text names them, such as "pp=2,tp=4"."""
        return ",".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1) or "dp_replicate=1"

    @property
    def dp(self) -> int:
        """Ranks among which the samples of a step are shared out."""
        return self.dp_replicate * self.dp_shard

    @property
    def world_size(self) -> int:
        """Workers that the mesh needs."""
        return math.prod(self.mesh.values())

    @property
    def chunks(self) -> int:
        """Stages that each rank of the pipeline holds."""
        return len(self.stages) // self.pp if self.stages else 1

    def coordinate(self, rank: int) -> dict[Axis, int]:
        """Where `rank` stands on each axis."""
        place: dict[Axis, int] = {}
        for axis in reversed(self.order):
            rank, place[axis] = divmod(rank, self.mesh[axis])
        return place

    def rank_of(self, coordinate: dict[Axis, int]) -> int:
        """The rank at a place of the mesh; the inverse of `coordinate`."""
        rank = 0
        for axis in self.order:
            rank = rank * self.mesh[axis] + coordinate[axis]
        return rank

    def as_dict(self) -> dict[str, object]:
        """The plan's fields as a JSON object, with `reasons`, and `text`, which can be asked for again."""
        return {**asdict(self), "text": str(self)}

    def to_json(self) -> str:
        """The plan as one JSON text, with `reasons`."""
        return json.dumps(asdict(self), sort_keys=True)

    def __str__(self) -> str:
        parts = [self.mesh_text]
        if self.microbatch is not None:
            parts.append(f"microbatch={self.microbatch}")
        parts.append(f"accum={self.grad_accum_steps}")
        if self.pp > 1:
            parts += [f"schedule={self.schedule}", f"stages={stages_text(self.stages)}"]
        if self.recompute != "none":
            parts.append(f"recompute={self.recompute}")
        if self.dp_shard > 1 and not self.reshard_after_forward:
            parts.append("reshard_after_forward=no")
        if self.sequence_parallel:
            parts.append("sequence_parallel=yes")
        if self.dp_replicate > 1:
            parts.append(f"bucket_mb={self.bucket_mb:g}")
        if self.order != AXES:
            parts.append(f"order={'/'.join(self.order)}")
        return ",".join(parts)


def stages_text(stages: tuple[int, ...]) -> str:
    """Stages as text: "3/3", and "1/2x14/1" where three or more in a row are equal."""
    runs = [(size, len(list(group))) for size, group in groupby(stages)]
    return "/".join(f"{size}x{many}" if many > 2 else "/".join([str(size)] * many) for size, many in runs)
