"""The plan: how a model's training is spread over the workers of a generation, and why so."""

from __future__ import annotations

from dataclasses import dataclass

from distroml.planner import AXES, Plan, PlanRefused

__all__ = ["AVAILABLE_AXES", "Plan", "PlanRefused", "plan"]

AVAILABLE_AXES = ("dp_replicate",)
_DEFAULT_BUCKET_MB = 8.0


@dataclass(frozen=True, slots=True)
class _Wish:
    axes: dict[str, int]
    bucket_mb: float | None = None


def _parse(text: str) -> _Wish:
    axes: dict[str, int] = {}
    bucket_mb: float | None = None
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        name = name.strip()
        if name not in (*AXES, "bucket_mb") or not equals:
            raise PlanRefused(
                f"plan {text!r} has {part!r}: expected 'auto' or NAME=NUMBER parts separated by commas, "
                f"with NAME one of {', '.join((*AXES, 'bucket_mb'))}"
            )
        try:
            number = float(value) if name == "bucket_mb" else int(value)
        except ValueError:
            number = 0
        if number <= 0:
            raise PlanRefused(f"plan {text!r} has {part!r}: {name} must be a positive number")
        if name == "bucket_mb":
            bucket_mb = float(number)
        else:
            axes[name] = int(number)
    return _Wish(axes, bucket_mb)


def plan(
    request: str | Plan = "auto",
    *,
    world_size: int,
    global_batch: int | None = None,
    microbatch: int | None = None,
    parameter_bytes: int | None = None,
) -> Plan:
    """The plan for `world_size` workers.

    Args:
        request: "auto", or axes such as "dp_replicate=2" or "dp_replicate=4,bucket_mb=25", or a ready `Plan`.
        world_size: workers of the generation.
        global_batch: samples per step, for the number of accumulated microbatches.
        microbatch: most samples of one forward pass.
        parameter_bytes: size of the gradients, which bounds the bucket size.

    Raises:
        PlanRefused: the request cannot be read, names an axis that this release cannot spread over, or does not
            fit the world size.
    """
    if isinstance(request, Plan):
        wish = _Wish({axis: size for axis, size in request.mesh.items()}, request.bucket_mb)
        microbatch = microbatch or request.microbatch
    else:
        wish = _Wish({}) if request == "auto" else _parse(request)
    for axis, size in wish.axes.items():
        if size > 1 and axis not in AVAILABLE_AXES:
            raise PlanRefused(
                f"the plan asks for {axis}={size}, which this release cannot do; available: "
                f"{', '.join(AVAILABLE_AXES)} (whole copies of the model, gradients summed). Leave {axis} out, "
                "or pass plan='auto'"
            )
    wanted = wish.axes.get("dp_replicate")
    if wanted is not None and wanted != world_size:
        raise PlanRefused(
            f"the plan asks for dp_replicate={wanted}, but this generation has {world_size} worker(s); "
            "pass plan='auto' to let the plan follow the world size"
        )
    reasons = [f"dp_replicate={world_size}: one whole copy of the model per worker"]
    bucket_mb = wish.bucket_mb
    if bucket_mb is None:
        bucket_mb = _DEFAULT_BUCKET_MB
        reasons.append(f"bucket_mb={bucket_mb:g}: the first sums overlap with the rest of the backward pass")
    accumulate = 1
    if global_batch is not None:
        largest = -(-global_batch // world_size)
        accumulate = -(-largest // (microbatch or largest))
        reasons.append(f"grad_accum_steps={accumulate}: at most {largest} of {global_batch} samples on a worker")
    if parameter_bytes is not None:
        reasons.append(f"gradients of {parameter_bytes / 1e6:.1f} MB per worker")
    return Plan(
        dp_replicate=world_size,
        microbatch=microbatch,
        grad_accum_steps=accumulate,
        bucket_mb=bucket_mb,
        reasons=tuple(reasons),
    )
