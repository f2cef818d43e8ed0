"""What is predicted of a plan: seconds and bytes, each with the parts that add up to it; or why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distroml.planner.plan import Plan

SECONDS: tuple[str, ...] = (
    "compute",
    "recompute",
    "tp",
    "bubble",
    "p2p",
    "dp_shard",
    "dp_replicate",
    "tied",
    "optimizer",
    "other",
)
BYTES: tuple[str, ...] = (
    "parameters",
    "gradients",
    "optimizer",
    "residuals",
    "gathered",
    "activations",
    "transient",
    "buffers",
    "margin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the pipeline, for one microbatch: seconds with collectives of tp, recomputation in the backward.

    `weight_s` is what of `backward_s` the gradients of weights take, which a zero-bubble schedule puts off.
    """

    blocks: int
    forward_s: float
    backward_s: float
    weight_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What compression does to one rank's step under a plan.

    Attributes:
        scheme: along dp_replicate; "none" where no other rank has the same gradients.
        shard: along dp_shard.
        sent_bytes: by axis, that the rank sends for gradients in a step; the mean of steps where replicas meet.
        dense_bytes: the same without compression, in every step.
        level_bytes: along dp_replicate by level of links, the mean of all ranks.
        codec_s: encoding and decoding, hidden or not.
        measured: whether that was measured here; else it is as fast as memory, which is a bound from below.
        residual_bytes: kept from step to step.
        working_bytes: messages and copies beside the gradients while they are exchanged.
        extra: steps to a loss beyond the dense run's, as a share of them, where they were known to the planner.
        sync_every: steps from one exchange along dp_replicate to the next; 0: gradients are summed in each.
    """

    scheme: str
    shard: str
    sent_bytes: Mapping[str, float]
    dense_bytes: Mapping[str, float]
    codec_s: float
    measured: bool
    residual_bytes: float
    working_bytes: float
    extra: float = 0.0
    level_bytes: Mapping[str, float] = field(default_factory=dict[str, float])
    sync_every: int = 0

    def as_dict(self) -> dict[str, object]:
        """The JSON object."""
        return {
            "scheme": self.scheme,
            "shard": self.shard,
            "sent_bytes": {axis: round(sent) for axis, sent in self.sent_bytes.items()},
            "dense_bytes": {axis: round(sent) for axis, sent in self.dense_bytes.items()},
            "level_bytes": {level: round(sent) for level, sent in self.level_bytes.items()},
            "codec_seconds": self.codec_s,
            "codec_measured": self.measured,
            "residual_bytes": round(self.residual_bytes),
            "working_bytes": round(self.working_bytes),
            "extra_steps": self.extra,
            "sync_every": self.sync_every,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One step under one plan.

    Attributes:
        plan: what is predicted.
        step_seconds: one optimizer step.
        peak_bytes_per_rank: most memory of any rank.
        seconds: parts of `step_seconds` by the names in `SECONDS`; exchanges count as far as nothing hides them.
        bytes: parts of `peak_bytes_per_rank` by the names in `BYTES`, on the rank that needs most.
        mfu: the model's own operations over what the devices' peak could do in that time.
        binding: the largest part of the step, with the level of links that it is spent on.
        capacity_bytes: memory that the plan may fill.
        microbatches: forward passes of one rank (and chunk) in a step.
        stages: in the order of the chain.
        send_s: time until one microbatch's output is on the next stage.
        rank_bytes: parts of the peak on each pp coordinate.
        compressed: what compression does, where it was asked for.
    """

    plan: Plan
    step_seconds: float
    peak_bytes_per_rank: float
    seconds: Mapping[str, float]
    bytes: Mapping[str, float]
    mfu: float
    binding: str
    capacity_bytes: float
    microbatches: int
    stages: tuple[Stage, ...] = ()
    send_s: float = 0.0
    rank_bytes: tuple[Mapping[str, float], ...] = ()
    compressed: Compressed | None = None

    def as_dict(self) -> dict[str, object]:
        """The JSON object of a prediction: its totals and its parts, without zeros."""
        told: dict[str, object] = {
            "step_seconds": self.step_seconds,
            "peak_bytes_per_rank": round(self.peak_bytes_per_rank),
            "mfu": self.mfu,
            "binding": self.binding,
            "parts": {
                "seconds": {name: value for name, value in self.seconds.items() if value},
                "bytes": {name: round(value) for name, value in self.bytes.items() if value},
            },
        }
        return told if self.compressed is None else told | {"compression": self.compressed.as_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a plan is not possible, and the nearest that is.

    Attributes:
        reason: what is wrong, as a sentence.
        nearest: what would work, or "".
        missing_bytes: by how much it does not fit into memory, 0 where that is not the cause.
        prediction: what it would cost were there enough memory.
    """

    reason: str
    nearest: str = ""
    missing_bytes: float = 0.0
    prediction: Prediction | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.reason}; {self.nearest}" if self.nearest else self.reason

    def as_dict(self) -> dict[str, object]:
        """The JSON object of a refusal; of a plan that only lacks memory it has the prediction too."""
        told: dict[str, object] = {"reason": self.reason, "nearest": self.nearest}
        if self.prediction is not None:
            told |= {"missing_bytes": round(self.missing_bytes), "prediction": self.prediction.as_dict()}
        return told


@dataclass(frozen=True, slots=True)
class Corrections:
    """Factors from measurements, by part; parts without one are taken as predicted."""

    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    bytes: Mapping[str, float] = field(default_factory=dict[str, float])

    def time(self, part: str) -> float:
        """Factor of a part of the step."""
        return self.seconds.get(part, 1.0)

    def memory(self, part: str) -> float:
        """Factor of a part of the peak."""
        return self.bytes.get(part, 1.0)
