"""Prices one plan: seconds and bytes by part, or the reason why the plan is not possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distroml.planner.compressing import NONE
from distroml.planner.cost.chain import Chain, Span
from distroml.planner.cost.collectives import all_reduce_s
from distroml.planner.cost.core import Core, Cores
from distroml.planner.cost.gradients import GradientCosts, Way
from distroml.planner.memory import Kept, MemoryModel
from distroml.planner.plan import Axis, Plan
from distroml.planner.possible import impossible
from distroml.planner.prediction import Compressed, Corrections, Prediction, Refused, Stage
from distroml.planner.profile import MeasuredUnit, ModelProfile
from distroml.planner.topology import Route, Topology
from distroml.planner.training import Training

_AXES: dict[str, Axis] = {
    "tp": "tp",
    "p2p": "pp",
    "tied": "pp",
    "dp_shard": "dp_shard",
    "dp_replicate": "dp_replicate",
}
"""Along which axis a part of the step is exchanged."""


class Pricer:
    """Prices plans of one model on one cluster; what plans have in common is computed once.

    Args:
        profile: the model.
        topology: the machines.
        training: optimizer and precision.
        global_batch: samples of a step; None: as many as the plan's microbatches make.
        measured: real times of units, which stand instead of the roofline's.
        corrections: factors that earlier measurements taught.
    """

    def __init__(
        self,
        profile: ModelProfile,
        topology: Topology,
        training: Training,
        global_batch: int | None = None,
        *,
        measured: Sequence[MeasuredUnit] = (),
        corrections: Corrections | None = None,
    ) -> None:
        self.profile = profile
        self.topology = topology
        self.training = training
        self.global_batch = global_batch
        self.corrections = corrections or Corrections()
        self.chain = Chain(profile, topology.device, training, measured)
        self.memory = MemoryModel(self.chain, topology.device, training, self.corrections)
        # Routes are shared, so that equal ones are one object and tell cores apart.
        self._routes: dict[tuple[int, int], Route] = {}
        self._shared: dict[Route, Route] = {}
        self._cores = Cores(self.chain, topology.device, self.route, self.samples)
        self._gradients = GradientCosts(self.chain, topology.device, training, self.route)

    def route(self, plan: Plan, axis: Axis) -> Route:
        """The levels that `axis` crosses under the plan's order."""
        mesh, stride = plan.mesh, 1
        for inner in reversed(plan.order):
            if inner == axis:
                break
            stride *= mesh[inner]
        return self.path(mesh[axis], stride)

    def path(self, size: int, stride: int) -> Route:
        """`Topology.route`, remembered; equal routes are one object."""
        key = (size, stride)
        if key not in self._routes:
            route = self.topology.route(size, stride)
            self._routes[key] = self._shared.setdefault(route, route)
        return self._routes[key]

    def price(self, plan: Plan) -> Prediction | Refused:
        """The prediction for `plan`, or why it is not possible."""
        if refused := self.impossible(plan):
            return refused
        prediction = self.predict(plan)
        missing = prediction.peak_bytes_per_rank - prediction.capacity_bytes
        if missing > 0:
            worst = max(prediction.bytes, key=lambda part: prediction.bytes[part])
            return Refused(
                reason=f"it needs {_gib(prediction.peak_bytes_per_rank)} of memory per rank and "
                f"{self.topology.device.name} has {_gib(prediction.capacity_bytes)} to give: "
                f"{_gib(missing)} too much",
                nearest=f"most of it is {worst} ({_gib(prediction.bytes[worst])}): {_remedy(worst)}",
                missing_bytes=missing,
                prediction=prediction,
            )
        return prediction

    def impossible(self, plan: Plan) -> Refused | None:
        """Why `plan` cannot be, memory apart, or None."""
        refused = impossible(plan, self.profile, self.topology, self.global_batch)
        shard = self.training.compressing.shard
        if refused is None and shard != NONE and plan.tp > 1 and plan.dp_shard > 1:
            return Refused(
                reason=f"compress_shard={shard} is not possible with tp={plan.tp}: parameters that all tp ranks hold "
                "would come apart",
                nearest="tp=1 works, or compress_shard=none",
            )
        what = self.training.compressing.whole_only
        if refused is None and what and plan.dp_replicate != plan.world_size:
            return Refused(
                reason=f"{what} is not possible with {plan.mesh_text}: it goes with replicas that are whole in one "
                "process each",
                nearest=f"dp_replicate={plan.world_size} works",
            )
        return refused

    def samples(self, plan: Plan) -> tuple[int, int]:
        """Samples of a microbatch, and microbatches of a step, on the data-parallel rank that has most."""
        if self.global_batch is None:
            return plan.microbatch or 1, plan.grad_accum_steps
        share = -(-self.global_batch // plan.dp)
        microbatch = min(plan.microbatch or share, share)
        return microbatch, -(-share // microbatch)

    def predict(self, plan: Plan) -> Prediction:
        """The prediction for a plan that is possible, whether or not it fits into memory."""
        microbatch, count = self.samples(plan)
        spans = self.chain.spans(plan.stages)
        core = self._cores.core(plan)
        seconds, way = self._priced(plan)
        step = sum(seconds.values())
        memory = self.memory.ranks(plan, spans, microbatch, count)
        peak = max(memory, key=lambda parts: sum(parts.values()))
        done = self.profile.model_flops * (self.global_batch or plan.dp * microbatch * count)
        able = step * plan.world_size * self.topology.device.peak(self.training.precision)
        return Prediction(
            plan=plan,
            step_seconds=step,
            peak_bytes_per_rank=sum(peak.values()),
            seconds=seconds,
            bytes=peak,
            mfu=done / able if able else 0.0,
            binding=self.binding(plan, seconds),
            capacity_bytes=self.topology.device.usable_bytes,
            microbatches=count,
            stages=tuple(
                Stage(blocks=blocks, forward_s=stage.forward, backward_s=stage.backward, weight_s=stage.weight)
                for blocks, stage in zip(plan.stages or (self.chain.blocks,), core.stages, strict=True)
            ),
            send_s=core.send,
            rank_bytes=tuple(memory),
            compressed=self._compressed(plan, way, self.memory.kept(plan, spans[memory.index(peak) :: plan.pp])),
        )

    def seconds(self, plan: Plan) -> dict[str, float]:
        """The step's parts under a plan that is possible."""
        return self._priced(plan)[0]

    def to_loss_s(self, plan: Plan) -> float:
        """The step as plans are compared by it: lengthened by the steps that lossy compression costs."""
        seconds, way = self._priced(plan)
        return sum(seconds.values()) * (1 + way.candidate.extra)

    def _priced(self, plan: Plan) -> tuple[dict[str, float], Way]:
        """The parts under the candidate of compression with the least time to a loss."""
        _, count = self.samples(plan)
        core, plain = self._cores.core(plan), self._cores.seconds(plan)
        plain["tied"] = self._tied_s(plan, self.chain.spans(plan.stages)) if self.profile.tied else 0.0
        plain["optimizer"] = self._optimizer_s(plan, core)
        plain["other"] = self.topology.device.step_s
        ways = [
            (self._corrected({**plain, "dp_shard": way.shard_s, "dp_replicate": way.replicate_s}), way)
            for way in self._gradients.ways(plan, core.ends, count)
        ]
        return min(ways, key=lambda one: sum(one[0].values()) * (1 + one[1].candidate.extra))

    def _compressed(self, plan: Plan, way: Way, kept: Kept) -> Compressed | None:
        """What compression does under the plan; None where none was asked for."""
        compressing = self.training.compressing
        if not compressing.agrees and compressing.shard == NONE:
            return None
        schemes = {way.candidate.scheme: plan.dp_replicate, compressing.shard: plan.dp_shard}
        return Compressed(
            scheme=way.candidate.scheme,
            shard=compressing.shard if plan.dp_shard > 1 else NONE,
            sent_bytes=way.sent_bytes,
            dense_bytes=way.dense_bytes,
            codec_s=way.codec_s,
            measured=all(
                compressing.s_per_element(scheme, ranks) is not None
                for scheme, ranks in schemes.items()
                if scheme != NONE and ranks > 1
            ),
            residual_bytes=kept.residuals,
            working_bytes=kept.working + kept.shard_working,
            extra=way.candidate.extra,
            level_bytes=way.level_bytes,
            sync_every=compressing.sync_every,
        )

    def core_s(self, plan: Plan, *, least: bool = False) -> float:
        """Seconds of the step without what data-parallel ranks exchange: no split of the same core takes less.

        `least` takes a bound from below for the bubble, which is known at once.
        """
        return sum(self._corrected(self._cores.seconds(plan, least=least)).values())

    def _corrected(self, seconds: Mapping[str, float]) -> dict[str, float]:
        return {part: value * self.corrections.time(part) for part, value in seconds.items()}

    def peak_bytes(self, plan: Plan) -> float:
        """Most memory of any rank under a plan that is possible."""
        microbatch, count = self.samples(plan)
        return self.memory.peak_bytes(plan, self.chain.spans(plan.stages), microbatch, count)

    def _tied_s(self, plan: Plan, spans: Sequence[Span]) -> float:
        """Sums of the gradients of parameters that several stages hold."""
        total = 0.0
        for group, elements in zip(self.profile.tied, self.profile.tied_parameters, strict=True):
            holders = {n for index in group for n, span in enumerate(spans) if span[0] <= index < span[1]}
            if len(holders) > 1:
                shared = self.chain.tied(group, elements, plan.tp) / plan.dp_shard
                # The holders are a group of their own; it crosses what the whole pipeline crosses.
                bytes_ = shared * self.training.reduced_bytes(self.profile.parameter_itemsize)
                total += all_reduce_s(self.route(plan, "pp")[-1:], bytes_)
        return total

    def _optimizer_s(self, plan: Plan, core: Core) -> float:
        device = self.topology.device
        traffic = core.elements / plan.dp_shard * self.training.step_bytes(self.profile.parameter_itemsize)
        rate = device.memory_bytes_per_s * device.memory_efficiency
        each = device.divided_tensor_s if plan.dp_shard > 1 or plan.tp > 1 else device.tensor_s
        return traffic / rate + core.tensors * each

    def binding(self, plan: Plan, seconds: dict[str, float]) -> str:
        """The largest part of the step; of exchanges with the outermost level of links that they cross."""
        grouped = dict(seconds)
        grouped["compute"] += grouped.pop("recompute")
        part = max(grouped, key=lambda name: grouped[name])
        links = self.links(plan, part)
        return f"{part} over {links} links" if links else part

    def links(self, plan: Plan, part: str) -> str:
        """The outermost level whose links a part of the step is spent on, "" where it is spent on none."""
        if part not in _AXES:
            return ""
        route = self.route(plan, _AXES[part])
        return route[-1].level.name if route else ""


def _gib(bytes_: float) -> str:
    return f"{bytes_ / (1 << 30):.2f} GiB"


def _remedy(part: str) -> str:
    return {
        "parameters": "more dp_shard, tp or pp divides it",
        "gradients": "more dp_shard, tp or pp divides it",
        "optimizer": "more dp_shard, tp or pp divides it, and sgd has none",
        "residuals": "compress=none has none, and more dp_shard, tp or pp divides it",
        "gathered": "reshard_after_forward=yes or more tp makes it smaller",
        "activations": "a smaller microbatch, recompute=full or more tp makes it smaller",
        "transient": "a smaller microbatch or more tp makes it smaller",
        "buffers": "a smaller bucket_mb or microbatch makes it smaller",
        "margin": "a smaller microbatch makes it smaller",
    }[part]


def price(
    profile: ModelProfile,
    topology: Topology,
    training: Training,
    plan: Plan,
    *,
    global_batch: int | None = None,
    measured: Sequence[MeasuredUnit] = (),
    corrections: Corrections | None = None,
) -> Prediction | Refused:
    """One plan's prediction, or why it is not possible. See `Pricer`, which is quicker for many plans."""
    return Pricer(profile, topology, training, global_batch, measured=measured, corrections=corrections).price(plan)
