"""What a picture shows, as numbers; travels as JSON with the plan that it explains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import cast

import msgspec

from distroml.planner.plan import Plan, PlanRefused
from distroml.planner.prediction import Prediction
from distroml.planner.timeline import Interval, bubble, timeline
from distroml.planner.topology import Topology

MAX_PASSES = 100_000
_AFTER = ("dp_shard", "dp_replicate", "tied", "optimizer", "other")
"""Parts of a step that follow its passes, as far as nothing hides them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A level of the topology: how many neighbouring ranks one of its groups holds ("node", 8)."""

    name: str
    ranks: int


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A plan and what is predicted of it.

    Attributes:
        plan: what is drawn.
        name: of the model, for people.
        blocks: blocks of the chain in each stage, as `Plan.stages`; one entry where `pp` is 1.
        levels: of the topology, innermost first.
        microbatches: that one rank runs in a step.
        forward_s: seconds of one microbatch's forward pass, by stage.
        backward_s: seconds of its backward pass with all recomputation, by stage.
        weight_s: what of `backward_s` a zero-bubble schedule puts off, by stage; none: the usual share.
        send_s: seconds until an output is on the next stage.
        after_s: what follows the last pass, by part ("gradients", "optimizer").
        memory_bytes: the peak by part of each pp coordinate's ranks.
        capacity_bytes: memory of one rank, 0 where it is not known.
        step_seconds: the predicted step.
        mfu: the predicted share of the machines' peak that the model's own operations use, 0 where it is not known.
    """

    plan: Plan
    name: str = "model"
    blocks: tuple[int, ...]
    levels: tuple[Level, ...] = ()
    microbatches: int
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    weight_s: tuple[float, ...] = ()
    send_s: float = 0.0
    after_s: dict[str, float] = field(default_factory=dict[str, float])
    memory_bytes: tuple[dict[str, float], ...] = ()
    capacity_bytes: float = 0.0
    step_seconds: float
    mfu: float = 0.0

    def __post_init__(self) -> None:
        stages = self.plan.pp * self.plan.chunks
        for name, values in (("blocks", self.blocks), ("forward_s", self.forward_s), ("backward_s", self.backward_s)):
            if len(values) != stages:
                raise ValueError(f"{name} has {len(values)} entries for {stages} stages")
        if len(self.weight_s) not in (0, stages):
            raise ValueError(f"weight_s has {len(self.weight_s)} entries for {stages} stages")
        if len(self.memory_bytes) not in (0, self.plan.pp):
            raise ValueError(f"memory_bytes has {len(self.memory_bytes)} entries for pp={self.plan.pp}")
        if self.microbatches < 1:
            raise ValueError(f"microbatches must be 1 or more, got {self.microbatches}")

    @cached_property
    def intervals(self) -> tuple[Interval, ...]:
        """When each pass of the step runs; of fewer microbatches where all would be more than `MAX_PASSES`."""
        schedule = self.plan.schedule if self.plan.pp > 1 else "1f1b"
        return timeline(
            schedule,
            self.plan.pp,
            self.drawn,
            forward_s=self.forward_s,
            backward_s=self.backward_s,
            weight_s=self.weight_s or None,
            send_s=self.send_s,
        )

    @property
    def drawn(self) -> int:
        """The microbatches of `intervals`."""
        return min(self.microbatches, max(1, MAX_PASSES // (3 * len(self.forward_s))))

    @property
    def bubble(self) -> float:
        """The share of the ranks' time in which they wait for one another."""
        return bubble(self.intervals)

    @property
    def passes_s(self) -> float:
        """From the step's first pass to the end of the last."""
        return max(interval.end_s for interval in self.intervals)

    @staticmethod
    def of(prediction: Prediction, topology: Topology | None = None, *, name: str = "model") -> Drawing:
        """What is predicted of a plan, on the machines it is predicted for."""
        ranks, levels = 1, list[Level]()
        for level in topology.levels if topology is not None else ():
            ranks *= level.extent
            if level.extent > 1:
                levels.append(Level(name=level.name, ranks=ranks))
        return Drawing(
            plan=prediction.plan,
            name=name,
            blocks=tuple(stage.blocks for stage in prediction.stages),
            levels=tuple(levels),
            microbatches=prediction.microbatches,
            forward_s=tuple(stage.forward_s for stage in prediction.stages),
            backward_s=tuple(stage.backward_s for stage in prediction.stages),
            weight_s=tuple(stage.weight_s for stage in prediction.stages),
            send_s=prediction.send_s,
            after_s={part: prediction.seconds[part] for part in _AFTER if prediction.seconds.get(part)},
            memory_bytes=tuple(
                {part: value for part, value in parts.items() if value} for parts in prediction.rank_bytes
            ),
            capacity_bytes=prediction.capacity_bytes,
            step_seconds=prediction.step_seconds,
            mfu=prediction.mfu,
        )

    def to_json(self) -> str:
        """One JSON text; `from_json` reads it."""
        fields = asdict(replace(self, plan=replace(self.plan, reasons=())))
        return msgspec.json.encode({name: _rounded(value) for name, value in fields.items()}).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Drawing:
        """The drawing of `to_json`.

        Raises:
            ValueError: the text is no drawing; says why.
        """
        try:
            return msgspec.json.decode(text, type=Drawing)
        except (msgspec.MsgspecError, PlanRefused) as error:
            raise ValueError(f"this is no drawing of a plan: {error}") from error


def _rounded(value: object) -> object:
    """Numbers with six figures: more says nothing here and takes room in an event."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case tuple():
            return [_rounded(item) for item in cast("tuple[object, ...]", value)]
        case dict():
            return {key: _rounded(item) for key, item in cast("dict[str, object]", value).items()}
        case _:
            return value
