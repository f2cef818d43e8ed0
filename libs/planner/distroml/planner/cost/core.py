"""What of a step is equal however data-parallel ranks share parameters: computation, tp, bubble, messages of pp."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distroml.planner.cost.chain import Chain, Span
from distroml.planner.cost.collectives import gather_s, send_s
from distroml.planner.cost.passes import WEIGHT_SHARE, least_passes_s, passes_s
from distroml.planner.cost.pipeline import sends
from distroml.planner.plan import Axis, Plan
from distroml.planner.prediction import SECONDS
from distroml.planner.topology import Device, Route


class Load(NamedTuple):
    """One stage's, or one pp coordinate's seconds for one microbatch through all its chunks, and what it holds."""

    compute: float
    recompute: float
    tp: float
    forward: float
    backward: float
    weight: float
    elements: float
    tensors: float
    units: int

    @property
    def total(self) -> float:
        """Seconds of both passes."""
        return self.forward + self.backward


class Core(NamedTuple):
    """The pipeline's share of a step: computation, tp and messages between stages; its bubble comes on top."""

    stages: Sequence[Load]
    ends: Sequence[tuple[Load, float]]
    """Ranks that differ, each with the time by which its last backward pass ends before the first rank's."""
    seconds: dict[str, float]
    busy: float
    """Seconds that the rank with most work works."""
    mean: float
    """Seconds that ranks work on average."""
    send: float
    elements: float
    tensors: float


# Enough for a search's sweep over data-parallel splits; what is forgotten is computed again.
_REMEMBERED = 4096


class Cores:
    """Finds cores, and remembers them.

    Args:
        chain: the model's units.
        device: that runs them.
        route: the levels that an axis crosses under a plan; equal ones are one object.
        samples: of a microbatch, and microbatches of a step, under a plan.
    """

    def __init__(
        self,
        chain: Chain,
        device: Device,
        route: Callable[[Plan, Axis], Route],
        samples: Callable[[Plan], tuple[int, int]],
    ) -> None:
        self.chain = chain
        self.device = device
        self.route = route
        self.samples = samples
        self._cores: dict[tuple[object, ...], Core] = {}
        self._bubbles: dict[tuple[object, ...], float] = {}

    def core(self, plan: Plan) -> Core:
        """What of a plan's cost does not depend on how data-parallel ranks share parameters."""
        key = (*self._key(plan), id(self.route(plan, "pp")))
        if found := self._cores.get(key):
            return found
        if len(self._cores) >= _REMEMBERED:
            self._cores.clear()
        self._cores[key] = core = self._core(plan, *self.samples(plan), self.route(plan, "tp"))
        return core

    def _key(self, plan: Plan) -> tuple[object, ...]:
        """Equal for plans whose passes take the same time."""
        schedule = plan.schedule if plan.pp > 1 else ""
        sharing = (*self.samples(plan), plan.tp, plan.pp, plan.stages, schedule, plan.recompute)
        return *sharing, plan.sequence_parallel, id(self.route(plan, "tp"))

    def seconds(self, plan: Plan, *, least: bool = False) -> dict[str, float]:
        """The core's parts of a step, by name; `least` takes a bound from below for the bubble."""
        core = self.core(plan)
        bubble = self._waiting_s(plan, least_passes_s) if least else self.bubble_s(plan)
        found = {**core.seconds, "bubble": bubble}
        if plan.pp == 1 or self.device.crowd <= 1:
            return found
        # While one rank waits those beside it compute faster: what they share is busy all the time, or the longest
        # way through the pipeline takes what it takes alone.
        passes = max(core.mean, (core.busy + bubble) / self.device.crowd)
        found["bubble"] = max(0.0, passes - core.busy)
        if passes < core.busy:
            found |= {part: found[part] * passes / core.busy for part in ("compute", "recompute", "tp")}
        return found

    def bubble_s(self, plan: Plan) -> float:
        """What the rank with most work waits for the others."""
        key = self._key(plan)
        if (found := self._bubbles.get(key)) is not None:
            return found
        if len(self._bubbles) >= _REMEMBERED:
            self._bubbles.clear()
        self._bubbles[key] = bubble = self._waiting_s(plan, passes_s)
        return bubble

    def _waiting_s(self, plan: Plan, passes: Callable[..., float]) -> float:
        if plan.pp == 1:
            return 0.0
        core = self.core(plan)
        _, count = self.samples(plan)
        forward, backward, weight = zip(
            *((stage.forward, stage.backward, stage.weight) for stage in core.stages), strict=True
        )
        return max(0.0, passes(plan.schedule, plan.pp, count, forward, backward, weight) - core.busy)

    def _core(self, plan: Plan, microbatch: int, count: int, tp_route: Route) -> Core:
        spans = self.chain.spans(plan.stages)
        kinds = [self.chain.alike(span) for span in spans]
        # One for each kind of stage, and for each kind of rank.
        stage_of = self._stages(plan, dict(zip(kinds, spans, strict=True)), microbatch, tp_route)
        stages = [stage_of[kind] for kind in kinds]
        kinds_of = [(*kinds[rank :: plan.pp],) for rank in range(plan.pp)]
        rank_of = {kind: self._rank([stage_of[one] for one in kind]) for kind in dict.fromkeys(kinds_of)}
        ranks = [rank_of[kind] for kind in kinds_of]
        worst = max(ranks, key=lambda rank: rank.total)
        seconds = dict.fromkeys(SECONDS, 0.0)
        seconds["compute"] = count * worst.compute
        seconds["recompute"] = count * worst.recompute
        seconds["tp"] = count * worst.tp
        send = self._send_s(plan, spans, microbatch, tp_route)
        seconds["p2p"] = send * sends(plan.schedule, plan.pp, plan.chunks, count, self.chain.profile.engine)
        ends: dict[object, tuple[Load, float]] = {}
        early = 0.0
        for kind, rank in zip(kinds_of, ranks, strict=True):
            # Of ranks that are alike the first ends last.
            ends.setdefault(kind, (rank, early))
            early += rank.backward / plan.chunks
        most = max(rank.elements for rank in ranks), max(rank.tensors for rank in ranks)
        mean = count * sum(rank.total for rank in ranks) / len(ranks)
        return Core(stages, list(ends.values()), seconds, count * worst.total, mean, send, *most)

    def _stages(self, plan: Plan, spans: Mapping[object, Span], microbatch: int, route: Route) -> dict[object, Load]:
        times = self.chain.times(microbatch, plan.tp, plan.sequence_parallel, plan.recompute, route)
        twice = self.device.split_backward if plan.pp > 1 and plan.schedule == "zero_bubble" else 1.0
        stages: dict[object, Load] = {}
        for kind, span in spans.items():
            forward, backward = times.forward.over(span), times.backward.over(span) * twice
            again, tp_forward, tp_backward = (
                times.recompute.over(span),
                times.tp_forward.over(span),
                times.tp_backward.over(span),
            )
            stages[kind] = Load(
                compute=forward + backward,
                recompute=again,
                tp=tp_forward + tp_backward,
                forward=forward + tp_forward,
                backward=backward + again + tp_backward,
                weight=backward * WEIGHT_SHARE,
                elements=self.chain.trainable(plan.tp, span),
                tensors=self.chain.sizes(plan.tp).tensors.over(span),
                units=span[1] - span[0],
            )
        return stages

    @staticmethod
    def _rank(chunks: Sequence[Load]) -> Load:
        if len(chunks) == 1:
            return chunks[0]
        return Load(*(sum(values) for values in zip(*chunks, strict=True)))

    def _send_s(self, plan: Plan, spans: Sequence[Span], microbatch: int, tp_route: Route) -> float:
        if plan.pp == 1:
            return 0.0
        crossing = max(self.chain.profile.units[end - 1].output_bytes for _, end in spans[:-1]) * microbatch
        route = self.route(plan, "pp")
        if self.chain.profile.engine == "torch" or plan.tp == 1:
            return send_s(route, crossing)
        # Each tp rank sends its part; without sequence parallelism the parts are gathered again on arrival.
        gathered = 0.0 if plan.sequence_parallel else gather_s(tp_route, crossing)
        return send_s(route, crossing / plan.tp) + gathered
