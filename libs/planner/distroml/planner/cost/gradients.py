"""Seconds and bytes of what data-parallel ranks exchange in a step, by each scheme that may compress it.

The time of a step is that of the coordinate along pp which is last: the slack of those that end earlier hides some of
their exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distroml.planner.codes import Buffer, Message, Sides, messages, shard_message
from distroml.planner.compressing import NONE, Candidate, spec_of
from distroml.planner.cost.chain import Chain
from distroml.planner.cost.collectives import all_reduce_s, exposed_s, gather_s, hidden
from distroml.planner.cost.core import Load
from distroml.planner.cost.exchange import StageLoad, shard_s
from distroml.planner.plan import Axis, Plan
from distroml.planner.topology import Device, Route
from distroml.planner.training import Training

_MIB = 1 << 20
# What ranks tell one another of a bucket before they exchange its codes: four numbers of 8 bytes.
_AGREEMENT_BYTES = 32
# Of an element's gradient, residual and sum one read and one write at least.
_CODEC_TRAFFIC_BYTES = 16


class Way(NamedTuple):
    """What exchanges take under one candidate, on the coordinate that is last.

    Attributes:
        candidate: along dp_replicate.
        shard_s: uncovered seconds along dp_shard.
        replicate_s: uncovered seconds along dp_replicate.
        sent_bytes: by axis.
        dense_bytes: the same without compression.
        codec_s: encoding and decoding.
    """

    candidate: Candidate
    shard_s: float
    replicate_s: float
    sent_bytes: Mapping[str, float]
    dense_bytes: Mapping[str, float]
    codec_s: float


class _Sum(NamedTuple):
    """One rank's sums along an axis: seconds on the wire and in codecs, bytes that it sends."""

    wire_s: float
    codec_s: float
    sent_bytes: float


class GradientCosts:
    """Prices exchanges of gradients for one model, kind of device and training."""

    def __init__(self, chain: Chain, device: Device, training: Training, route: Callable[[Plan, Axis], Route]) -> None:
        self._chain = chain
        self._device = device
        self._training = training
        self._route = route

    def ways(self, plan: Plan, ends: Sequence[tuple[Load, float]], count: int) -> list[Way]:
        """One for each candidate; one alone where nothing is exchanged along dp_replicate.

        Args:
            plan: that is priced.
            ends: each kind of rank, and how much earlier than the last it ends.
            count: microbatches of a step.
        """
        candidates = self._training.compressing.candidates
        if plan.dp_replicate == 1:
            return [self._way(plan, ends, count, Candidate(NONE))]
        return [self._way(plan, ends, count, one) for one in candidates]

    def _way(self, plan: Plan, ends: Sequence[tuple[Load, float]], count: int, candidate: Candidate) -> Way:
        last: tuple[float, Way] | None = None
        for rank, slack in ends:
            shard, sharded = self._shard(plan, rank, count)
            replicate, summed, dense = self._replicate(plan, rank, candidate)
            if last is None or shard + replicate - slack > last[0]:
                sent = {"dp_shard": sharded[0].sent_bytes, "dp_replicate": summed.sent_bytes}
                plain = {"dp_shard": sharded[1], "dp_replicate": dense}
                last = (
                    shard + replicate - slack,
                    Way(
                        candidate,
                        shard,
                        replicate,
                        {axis: value for axis, value in sent.items() if plain[axis]},
                        {axis: value for axis, value in plain.items() if value},
                        sharded[0].codec_s + summed.codec_s,
                    ),
                )
        assert last is not None, "a plan has ranks"
        return last[1]

    # ---- along dp_shard

    def _shard(self, plan: Plan, rank: Load, count: int) -> tuple[float, tuple[_Sum, float]]:
        """Uncovered seconds; the scattered sums, and what they would send as they are."""
        route, training = self._route(plan, "dp_shard"), self._training
        if not route:
            return 0.0, (_Sum(0.0, 0.0, 0.0), 0.0)
        item, ranks = self._chain.profile.parameter_itemsize, plan.dp_shard
        # See `ModelProfile.engine`.
        keeps = plan.pp > 1 and self._chain.profile.engine == "torch"
        once = plan.pp > 1 and self._chain.profile.engine == "megatron" and not plan.reshard_after_forward
        times = 1 if once else count
        device = self._device
        overlap = device.overlap if device.shard_overlap is None else device.shard_overlap
        dense = training.reduced_bytes(item)
        coded, codec_s = float(dense), 0.0
        if training.compressing.shard != NONE and rank.elements:
            unit = math.ceil(rank.elements / max(1, rank.units))
            coded = shard_message(spec_of(training.compressing.shard), unit, ranks).bytes / unit
            # Within the pass, on the thread that computes.
            codec_s = times * rank.elements * self._codec_s_per_element(training.compressing.shard, ranks)
        uncovered = shard_s(
            route,
            StageLoad(elements=rank.elements, units=rank.units, forward_s=rank.forward, backward_s=rank.backward),
            gather_bytes=min(item, training.compute_itemsize),
            scatter_bytes=coded,
            times=times,
            again=plan.reshard_after_forward and not keeps,
            overlap=hidden(route, overlap),
        )
        sent = times * rank.elements * (ranks - 1) / ranks
        return uncovered + codec_s, (_Sum(0.0, codec_s, sent * coded), sent * dense)

    # ---- along dp_replicate

    def _replicate(self, plan: Plan, rank: Load, candidate: Candidate) -> tuple[float, _Sum, float]:
        """Seconds that sums outlast the backward pass; the sums, and what they would send as they are."""
        route, device = self._route(plan, "dp_replicate"), self._device
        elements = rank.elements / plan.dp_shard
        if not route or not elements:
            return 0.0, _Sum(0.0, 0.0, 0.0), 0.0
        item = self._chain.profile.parameter_itemsize
        bytes_ = elements * self._training.reduced_bytes(item)
        buckets = max(1, math.ceil(bytes_ / (plan.bucket_mb * _MIB)))
        dense_bytes = 2 * bytes_ * (plan.dp_replicate - 1) / plan.dp_replicate
        if candidate.scheme == NONE:
            # `none` among others is exchanged as they are, and agreed upon.
            known = all_reduce_s(route, _AGREEMENT_BYTES * buckets, count=buckets) if self._agrees else 0.0
            summed = _Sum(all_reduce_s(route, bytes_, count=buckets) + known, 0.0, dense_bytes)
        else:
            summed = self._coded(plan, route, elements, buckets, candidate.scheme)
        slows = self._training.compressing.slows
        beside_s = summed.wire_s + (1 - slows) * summed.codec_s
        late_s = beside_s * self._late(plan)
        # The last bucket fills at the pass's very end and stands uncovered.
        last_s = (beside_s - late_s) / buckets
        uncovered = slows * summed.codec_s + late_s + last_s
        uncovered += exposed_s(beside_s - late_s - last_s, rank.backward, hidden(route, device.overlap))
        return uncovered + elements * item * device.copy_s_per_byte, summed, dense_bytes

    def _late(self, plan: Plan) -> float:
        """The share of gradients whose sums along dp_replicate begin only when the backward pass is over.

        A stage's are whole when its last pass ends; what all tp ranks hold alike is summed along tp first, and FSDP
        sums what lies outside of the blocks last. Other engines sum those of divided models at the end.
        """
        chain, span = self._chain, (0, len(self._chain.units))
        own = chain.trainable(plan.tp, span)
        if plan.dp_shard == plan.tp == plan.pp == 1:
            return 0.0
        if plan.pp > 1 or chain.profile.engine != "torch" or not own:
            return 1.0
        late = 0.0
        if plan.tp > 1:
            whole = chain.trainable(1, span)
            late += whole - (whole - own) * plan.tp / (plan.tp - 1)
        if plan.dp_shard > 1:
            late += own - chain.trainable(plan.tp, (chain.first, chain.first + chain.blocks))
        return min(1.0, max(0.0, late / own))

    @property
    def _agrees(self) -> bool:
        return self._training.compressing.on

    def _coded(self, plan: Plan, route: Route, elements: float, buckets: int, scheme: str) -> _Sum:
        spec, ranks = spec_of(scheme), plan.dp_replicate
        told = messages(spec, self.bucket(plan, elements, buckets, scheme), ranks)
        wire_s = sum(_message_s(route, one, ranks) for one in told) * buckets
        wire_s += all_reduce_s(route, _AGREEMENT_BYTES * buckets, count=buckets)
        codec_s = elements * self._codec_s_per_element(scheme, ranks)
        return _Sum(wire_s, codec_s, buckets * sum(one.sent_bytes(ranks) for one in told))

    def bucket(self, plan: Plan, elements: float, buckets: int, scheme: str) -> Buffer:
        """One of `buckets` equal ones of `elements` in all, as a scheme sees it.

        Where a stage has a part of the model, its matrices are taken to be as the whole model's.
        """
        each = math.ceil(elements / buckets)
        if spec_of(scheme).kind != "powersgd":
            return Buffer(each)
        span = (0, len(self._chain.units))
        share = elements * plan.dp_shard / max(1.0, self._chain.trainable(plan.tp, span)) / buckets
        sides = self._chain.sides(plan.tp, plan.dp_shard, (span,))
        return Buffer(each, tuple(Sides(one.rows, one.columns, one.many * share) for one in sides))

    def _codec_s_per_element(self, scheme: str, ranks: int) -> float:
        measured = self._training.compressing.s_per_element(scheme, ranks)
        if measured is not None:
            return measured
        return _CODEC_TRAFFIC_BYTES / (self._device.memory_bytes_per_s * self._device.memory_efficiency)


def _message_s(route: Route, message: Message, ranks: int) -> float:
    if message.how == "sum":
        return all_reduce_s(route, message.bytes)
    if message.how == "gather":
        return gather_s(route, message.bytes * ranks)
    # Every rank sends each other one its part: as much as a reduce-scatter.
    return gather_s(route, message.bytes, scatter=True)
