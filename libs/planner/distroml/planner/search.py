"""Finds the fastest plan that fits into memory. Deterministic: equal inputs give equal choices on every rank.

Branch and bound. Computation, tp, bubble and messages between stages ("core") do not depend on how data-parallel
ranks share parameters and bound the step from below; the least memory of a core is that under full sharding. Cores of
each mesh shape are visited from the lowest bound until none can beat the best plan found, so that the best plan of
every shape is known, and with it why it was not chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distroml.planner.balance import balanced_stages
from distroml.planner.candidates import Core, Shape, cores, orders, plan_of, shapes, splits
from distroml.planner.plan import AXES, Axis, Plan, PlanRefused
from distroml.planner.possible import pp_refused, tp_refused
from distroml.planner.prediction import Corrections, Prediction, Refused
from distroml.planner.preference import complexity, not_chosen, shape_of
from distroml.planner.pricing import Pricer
from distroml.planner.profile import MeasuredUnit, ModelProfile
from distroml.planner.reasons import TIE, bytes_text, reasons_for, refusal_of_nothing, seconds_text
from distroml.planner.request import Wish
from distroml.planner.topology import Topology
from distroml.planner.training import Training

_MOST_ALTERNATIVES = 12
# Shapes whose lower bound is this many times the best step are not searched to their end.
_HOPELESS = 1.6
_NEVER = "no plan without it is possible with this model, batch and number of ranks, and as wished"
_BUCKETS_MB = (1.0, 4.0, 8.0, 25.0, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A plan that was not chosen, and why."""

    plan: Plan
    prediction: Prediction
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen plan, and what was seen on the way.

    Attributes:
        plan: the chosen one, with `reasons`.
        prediction: of it.
        alternatives: the best plan of each other tp x pp x dp, fastest first; of the chosen one, the best other way
            to share dp between dp_replicate and dp_shard.
        rejected: how many candidates went for which reason.
    """

    plan: Plan
    prediction: Prediction
    alternatives: tuple[Alternative, ...]
    rejected: Mapping[str, int]

    @property
    def binding(self) -> str:
        """What the step's time is mostly spent on."""
        return self.prediction.binding

    def as_dict(self) -> dict[str, object]:
        """The choice as a JSON object: `plan`, `prediction`, `alternatives`, `binding`, `rejected`."""
        return {
            "plan": self.plan.as_dict(),
            "prediction": self.prediction.as_dict(),
            "binding": self.binding,
            "alternatives": [
                {"plan": one.plan.as_dict(), "prediction": one.prediction.as_dict(), "reason": one.reason}
                for one in self.alternatives
            ],
            "rejected": dict(self.rejected),
        }


def search(
    profile: ModelProfile,
    topology: Topology,
    training: Training,
    global_batch: int,
    *,
    wish: Wish | None = None,
    measured: Sequence[MeasuredUnit] = (),
    corrections: Corrections | None = None,
) -> Choice:
    """The fastest plan that fits, within `wish`.

    Raises:
        PlanRefused: no plan is possible or none fits: why, by how many bytes, and what would make it fit.
    """
    pricer = Pricer(profile, topology, training, global_batch, measured=measured, corrections=corrections)
    return Search(pricer, wish or Wish()).run()


def complete(pricer: Pricer, wish: Wish) -> Prediction | Refused:
    """The price of one given plan; what it leaves open is as `Wish.whole` says, and otherwise at its best."""
    only = Search(pricer, wish.whole(), alternatives=False)
    try:
        return only.run().prediction
    except PlanRefused as error:
        if only.nearest is not None:
            return pricer.price(only.nearest[1])
        return Refused(reason=str(error))


class Search:
    """One search; `run` once."""

    def __init__(self, pricer: Pricer, wish: Wish, *, alternatives: bool = True) -> None:
        if pricer.global_batch is None:
            raise PlanRefused("a search needs to know the global batch")
        self.pricer = pricer
        self.wish = wish
        self.batch = pricer.global_batch
        self.alternatives = alternatives
        self.rejected: Counter[str] = Counter()
        self.nearest: tuple[float, Plan] | None = None
        self._seen: list[tuple[float, Plan]] = []
        self._short: dict[Shape, float] = {}
        """Bytes that the least plan of a shape lacks, where plans of it do not fit."""
        self._laid: dict[tuple[int, ...], list[tuple[Axis, ...]]] = {}

    def run(self) -> Choice:
        """See `search`."""
        profile, world = self.pricer.profile, self.pricer.topology.world_size
        possible = shapes(profile, world, self.wish)
        queues = {shape: self._queue(shape) for shape in possible}
        found: list[tuple[float, Plan]] = []
        best = float("inf")
        for shape in sorted(possible, key=lambda shape: (queues[shape][0][0] if queues[shape] else 0.0, shape)):
            # A plainer plan that is as fast must be found too.
            bound = best * (_HOPELESS if self.alternatives else 1 + TIE)
            if plan := self._best_of(queues[shape], bound):
                found.append(plan)
                best = min(best, plan[0])
        if not found:
            raise PlanRefused(self._nothing(possible))
        found.sort(key=lambda pair: pair[0])
        near = [plan for step, plan in self._seen if step <= best * (1 + TIE)]
        chosen = self._bucketed(min(near, key=complexity))
        prediction = self.pricer.predict(chosen)
        if not self.alternatives:
            return Choice(plan=chosen, prediction=prediction, alternatives=(), rejected=dict(self.rejected))
        others = [plan for _, plan in found if shape_of(plan) != shape_of(chosen)]
        # Of the chosen shape, the other way to share the parameters.
        others += self._fastest(lambda plan: shape_of(plan) == shape_of(chosen) and plan.mesh != chosen.mesh)
        alternatives = sorted(map(self.pricer.predict, others), key=lambda other: other.step_seconds)
        without: dict[str, Prediction | str] = {
            axis: self._without(axis, chosen, queues) for axis, size in chosen.mesh.items() if size > 1
        }
        for plan in self._fastest(lambda plan: plan.mesh == chosen.mesh and plan.schedule != chosen.schedule):
            without["schedule"] = self.pricer.predict(plan)
        plan = replace(chosen, reasons=reasons_for(prediction, self.pricer, without, dict(self.rejected)))
        return Choice(
            plan=plan,
            prediction=replace(prediction, plan=plan),
            alternatives=tuple(
                Alternative(plan=other.plan, prediction=other, reason=not_chosen(other, prediction))
                for other in alternatives[:_MOST_ALTERNATIVES]
            ),
            rejected=dict(self.rejected),
        )

    def _without(
        self, axis: Axis, chosen: Plan, queues: Mapping[Shape, Sequence[tuple[float, int, Core, Plan]]]
    ) -> Prediction | str:
        """The best plan seen in which `axis` is 1, or why none was."""
        if plans := self._fastest(lambda plan: plan.mesh[axis] == 1):
            return self.pricer.predict(plans[0])
        if axis in ("dp_replicate", "dp_shard"):
            alike = replace(chosen, **{"dp_replicate": chosen.dp, "dp_shard": chosen.dp, axis: 1})
            missing = self.pricer.peak_bytes(alike) - self.pricer.topology.device.usable_bytes
            return f"all else alike, without it {bytes_text(missing)} of memory are missing" if missing > 0 else _NEVER
        shapes = [shape for shape in queues if getattr(shape, axis) == 1]
        if bounds := [queues[shape][0][0] for shape in shapes if queues[shape]]:
            # What was not visited takes that much longer, or the bound says more.
            least = max(min(bounds), _HOPELESS * sum(self.pricer.seconds(chosen).values()))
            return f"without it a step takes {seconds_text(least)} at least"
        if short := [self._short[shape] for shape in shapes if shape in self._short]:
            return f"without it {bytes_text(min(short))} of memory are missing at least"
        return _NEVER

    def _fastest(self, wanted: Callable[[Plan], bool]) -> list[Plan]:
        """The fastest seen plan that is `wanted`; none where none was seen."""
        found = [(step, complexity(plan), plan) for step, plan in self._seen if wanted(plan)]
        return [self._bucketed(min(found, key=lambda one: one[:2])[2])] if found else []

    def _queue(self, shape: Shape) -> list[tuple[float, int, Core, Plan]]:
        """Cores of `shape` that can fit at all, lowest bound first, each with its most sharded plan."""
        queue: list[tuple[float, int, Core, Plan]] = []
        by_shards = sorted(splits(shape.dp, self.wish), key=lambda split: -split[1])
        # Tiny models may need least without gathering anything.
        extremes = (by_shards[0], by_shards[-1]) if len(by_shards) > 1 else (by_shards[0],)
        candidates = cores(self.pricer.profile, shape, self.batch, self.wish)
        if not candidates:
            self.rejected["the batch does not divide among the ranks and microbatches"] += 1
        share = -(-self.batch // shape.dp)
        for number, core in enumerate(candidates):
            stages = self._stages(core)
            if stages is None:
                self.rejected["the wanted stages do not fit the model"] += 1
                continue
            count = -(-share // core.microbatch)
            peak, plan = self._least(core, extremes, stages, count)
            if plan is None:
                self.rejected["the wanted values contradict the model, the machines or the batch"] += 1
                continue
            missing = peak - self.pricer.topology.device.usable_bytes
            if missing > 0:
                self.rejected["too little memory, however the parameters are shared"] += 1
                self._note(missing, plan)
                self._short[shape] = min(missing, self._short.get(shape, missing))
                continue
            queue.append((self._bound(plan), number, core, plan))
        queue.sort(key=lambda entry: entry[:2])
        return queue

    def _least(
        self, core: Core, extremes: Sequence[tuple[int, int]], stages: tuple[int, ...], count: int
    ) -> tuple[float, Plan | None]:
        """The plan of `core` that needs least memory, and how much; None where none is possible."""
        best: tuple[float, Plan | None] = (float("inf"), None)
        for split in extremes:
            plan = plan_of(core, split, stages, count, self.wish)
            if self.pricer.impossible(plan):
                continue
            peak = self.pricer.peak_bytes(plan)
            if peak < best[0]:
                best = peak, plan
            if peak <= self.pricer.topology.device.usable_bytes:
                break
        return best

    def _bound(self, plan: Plan, *, least: bool = True) -> float:
        """A step's least time for the plan's core: its pipeline with every axis on the best links for it.

        `least` takes a quick bound for the pipeline's bubble, too.
        """
        return min(self.pricer.core_s(replace(plan, order=order), least=least) for order in self._inner(plan))

    @staticmethod
    def _inner(plan: Plan) -> list[tuple[Axis, ...]]:
        # Each of both innermost once: what the other then loses to data parallelism it loses in any order.
        if plan.pp == 1:
            return [AXES]
        return [("dp_replicate", "dp_shard", "pp", "tp"), ("dp_replicate", "dp_shard", "tp", "pp")]

    def _stages(self, core: Core) -> tuple[int, ...] | None:
        if core.shape.pp == 1:
            return () if self.wish.stages in (None, (self.pricer.profile.block_count,)) else None
        if self.wish.stages is not None:
            return self.wish.stages if len(self.wish.stages) == core.shape.pp * core.chunks else None
        return self.balanced(core)

    def balanced(self, core: Core) -> tuple[int, ...]:
        """Stages of equal time for `core`."""
        chain = self.pricer.chain
        route = self.pricer.path(core.shape.tp, 1)
        times = chain.times(core.microbatch, core.shape.tp, core.sequence_parallel, core.recompute, route)

        def total(start: int, end: int) -> float:
            return sum(one.over((start, end)) for one in times)

        end = chain.first + chain.blocks
        if chain.uniform:
            blocks = (total(chain.first, chain.first + 1),) * chain.blocks
        else:
            blocks = tuple(total(at, at + 1) for at in range(chain.first, end))
        before, after = total(0, chain.first), total(end, len(chain.units))
        return balanced_stages(blocks, core.shape.pp * core.chunks, before, after)

    def _best_of(self, queue: Sequence[tuple[float, int, Core, Plan]], bound: float) -> tuple[float, Plan] | None:
        best: tuple[float, Plan] | None = None
        for least, _, _, plan in queue:
            limit = bound if best is None else min(bound, best[0] * (1 + TIE))
            if least >= limit or self._bound(plan, least=False) > limit:
                self.rejected["slower, whatever data parallelism does"] += 1
                continue
            shared = self._shared(plan)
            self._seen += shared
            for step, candidate in shared:
                if best is None or (step, complexity(candidate)) < (best[0], complexity(best[1])):
                    best = step, candidate
        return best

    def _shared(self, plan: Plan) -> list[tuple[float, Plan]]:
        """All ways to share one core's parameters among its data-parallel ranks, and to lay its axes on levels."""
        found: list[tuple[float, Plan]] = []
        capacity = self.pricer.topology.device.usable_bytes
        # Pipelined stages of torch's engine keep what they gathered, whatever the plan says.
        means_nothing = plan.pp > 1 and self.pricer.profile.engine == "torch"
        for reshard in (True, False):
            if means_nothing and not reshard and self.wish.reshard_after_forward is None:
                continue
            if plan.dp > 1 and self.wish.reshard_after_forward not in (None, reshard):
                continue
            # Among sharded plans, fewer shards never need less memory.
            full = False
            for replicate, shard in sorted(splits(plan.dp, self.wish), key=lambda split: -split[1]):
                if full and shard > 1:
                    continue
                if shard == 1 and not reshard and self.wish.reshard_after_forward is None:
                    continue
                one = replace(plan, dp_replicate=replicate, dp_shard=shard, reshard_after_forward=reshard)
                if self.pricer.impossible(one):
                    continue
                peak = self.pricer.peak_bytes(one)
                if peak > capacity:
                    self.rejected["too little memory"] += 1
                    self._note(peak - capacity, one)
                    full = True
                    continue
                for order in self._orders(one):
                    laid = replace(one, order=order)
                    found.append((self.pricer.to_loss_s(laid), laid))
        return found

    def _orders(self, plan: Plan) -> list[tuple[Axis, ...]]:
        mesh = tuple(plan.mesh.values())
        if mesh not in self._laid:
            self._laid[mesh] = orders(plan.mesh, self.wish, self.pricer.path)
        return self._laid[mesh]

    def _note(self, missing: float, plan: Plan) -> None:
        if self.nearest is None or missing < self.nearest[0]:
            self.nearest = missing, plan

    def _bucketed(self, plan: Plan) -> Plan:
        """`plan` with the bucket size that hides most of the exchange."""
        if plan.dp_replicate == 1 or self.wish.bucket_mb is not None:
            return plan
        sized = [replace(plan, bucket_mb=size) for size in (plan.bucket_mb, *_BUCKETS_MB)]
        fitting = [one for one in sized if self.pricer.peak_bytes(one) <= self.pricer.topology.device.usable_bytes]
        return min(fitting, key=self.pricer.to_loss_s)

    def _nothing(self, possible: Sequence[Shape]) -> str:
        pricer, wish = self.pricer, self.wish
        if self.nearest is not None and not self.alternatives:
            return "no plan that is as wished fits into memory"
        if self.nearest is not None:
            missing, plan = self.nearest
            return refusal_of_nothing(pricer, wish, pricer.predict(plan), missing)
        for refused in (tp_refused(wish.tp or 1, pricer.profile), pp_refused(wish.pp or 1, pricer.profile)):
            if refused:
                return str(refused)
        world = pricer.topology.world_size
        fixed = {axis: size for axis, size in wish.mesh.items() if size is not None}
        if not possible:
            told = " x ".join(f"{axis}={size}" for axis, size in fixed.items()) or "no mesh"
            return (
                f"{told} cannot be laid on {world} ranks: the degrees must multiply to {world}, and those that are "
                f"left open must divide what remains"
            )
        return self._why_not(possible[0])

    def _why_not(self, shape: Shape) -> str:
        """The reason of one impossible plan that the wish describes."""
        wish = self.wish
        replicate, shard = next(iter(splits(shape.dp, wish)))
        blocks = self.pricer.profile.block_count
        chunks = wish.chunks or 1
        if wish.stages is None and shape.pp * chunks > blocks:
            made = f"chunks={chunks} on each of pp={shape.pp} ranks make {shape.pp * chunks} stages"
            return f"{made}, the model has {blocks} blocks"
        stages = wish.stages or (balanced_stages((1.0,) * blocks, shape.pp * chunks) if shape.pp > 1 else ())
        plan = Plan(
            dp_replicate=replicate,
            dp_shard=shard,
            tp=shape.tp,
            pp=shape.pp,
            microbatch=wish.microbatch,
            schedule=wish.schedule or ("interleaved" if chunks > 1 else "1f1b"),
            stages=stages if shape.pp > 1 else (),
            sequence_parallel=bool(wish.sequence_parallel),
        )
        if refused := self.pricer.impossible(plan):
            return str(refused)
        steps = wish.grad_accum_steps
        return (
            f"no plan for {self.pricer.topology.world_size} ranks and a global batch of {self.batch} is as wished"
            + (f": grad_accum_steps={steps} goes with no microbatch that divides a rank's share" if steps else "")
        )
