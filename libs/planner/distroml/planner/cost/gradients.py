"""Seconds and bytes of what data-parallel ranks exchange in a step, by each scheme that may compress it.

The time of a step is that of the coordinate along pp which is last: the slack of those that end earlier hides some of
their exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distroml.planner.codes import Buffer, Sides, messages, shard_message
from distroml.planner.compressing import NONE, Candidate, spec_of
from distroml.planner.cost.chain import Chain
from distroml.planner.cost.collectives import exposed_s, gather_s, hidden
from distroml.planner.cost.core import Load
from distroml.planner.cost.exchange import StageLoad, shard_s
from distroml.planner.cost.moves import NOTHING, Moved, moved, summed, together
from distroml.planner.plan import Axis, Plan
from distroml.planner.topology import Device, Route
from distroml.planner.training import Training

_MIB = 1 << 20
# What ranks tell one another of a bucket before they exchange its codes, or with them: three numbers of 8 bytes.
_AGREEMENT_BYTES = 24
# Of an element's gradient, residual and sum one read and one write at least.
_CODEC_TRAFFIC_BYTES = 16
# How often an outer step reads or writes an element: three times for the difference from the last meeting, the others
# for the mean, the momentum, the new anchor and the parameters.
_OUTER_TRAFFIC = 18


class Way(NamedTuple):
    """What exchanges take under one candidate, on the coordinate that is last.

    Attributes:
        candidate: along dp_replicate.
        shard_s: uncovered seconds along dp_shard.
        replicate_s: uncovered seconds along dp_replicate.
        sent_bytes: by axis.
        dense_bytes: the same without compression.
        codec_s: encoding and decoding.
        level_bytes: sent along dp_replicate by level of links, the mean of all ranks.
    """

    candidate: Candidate
    shard_s: float
    replicate_s: float
    sent_bytes: Mapping[str, float]
    dense_bytes: Mapping[str, float]
    codec_s: float
    level_bytes: Mapping[str, float]


class _Sum(NamedTuple):
    """One rank's sums along an axis: seconds on the wire and in codecs, bytes that it sends, in all and by level."""

    wire_s: float
    codec_s: float
    sent_bytes: float
    level_bytes: Mapping[str, float] = NOTHING.sent_bytes

    def spread(self, steps: int) -> _Sum:
        """The same, once in so many steps."""
        levels = {level: sent / steps for level, sent in self.level_bytes.items()}
        return _Sum(self.wire_s / steps, self.codec_s / steps, self.sent_bytes / steps, levels)


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
            replicate, exchanged, dense = self._replicate(plan, rank, candidate)
            if last is None or shard + replicate - slack > last[0]:
                sent = {"dp_shard": sharded[0].sent_bytes, "dp_replicate": exchanged.sent_bytes}
                plain = {"dp_shard": sharded[1], "dp_replicate": dense}
                last = (
                    shard + replicate - slack,
                    Way(
                        candidate,
                        shard,
                        replicate,
                        {axis: value for axis, value in sent.items() if plain[axis]},
                        {axis: value for axis, value in plain.items() if value},
                        sharded[0].codec_s + exchanged.codec_s,
                        exchanged.level_bytes,
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
        coded, codec_s, units = float(dense), 0.0, max(1, rank.units)
        direct_s = 0.0
        if training.compressing.shard != NONE and rank.elements:
            unit = math.ceil(rank.elements / units)
            message = shard_message(spec_of(training.compressing.shard), unit, ranks)
            coded = message.bytes / unit
            # Within the pass, on the thread that computes.
            codec_s = times * rank.elements * self._codec_s_per_element(training.compressing.shard, ranks)
            # To each owner directly, which over several levels takes longer than a ring.
            direct_s = moved(route, message, units, on_cpu=device.on_cpu).seconds
        uncovered = shard_s(
            route,
            StageLoad(elements=rank.elements, units=rank.units, forward_s=rank.forward, backward_s=rank.backward),
            gather_bytes=min(item, training.compute_itemsize),
            # What was measured of scatters has the copies in it that sharding makes around them.
            scatters_s=max(direct_s, gather_s(route, rank.elements * coded, count=units, scatter=True)),
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
            exchanged = self._plain(route, bytes_, buckets, dense_bytes)
        else:
            exchanged = self._coded(plan, route, elements, buckets, candidate.scheme)
        laid_s = elements * item * device.copy_s_per_byte
        if every := self._training.compressing.sync_every:
            # Whoever meets does nothing else: parameters are laid into the buffers, and out of them again.
            meeting_s = exchanged.wire_s + exchanged.codec_s + 2 * laid_s
            meeting_s += elements * item * _OUTER_TRAFFIC / (device.memory_bytes_per_s * device.memory_efficiency)
            return meeting_s / every + laid_s, exchanged.spread(every), dense_bytes
        slows = self._training.compressing.slows
        beside_s = exchanged.wire_s + (1 - slows) * exchanged.codec_s
        late_s = beside_s * self._late(plan)
        # The last bucket fills at the pass's very end and stands uncovered.
        last_s = (beside_s - late_s) / buckets
        uncovered = slows * exchanged.codec_s + late_s + last_s
        uncovered += exposed_s(beside_s - late_s - last_s, rank.backward, hidden(route, device.overlap))
        return uncovered + laid_s, exchanged, dense_bytes

    def _plain(self, route: Route, bytes_: float, buckets: int, sent_bytes: float) -> _Sum:
        """Sums of gradients as they are, and what ranks agree upon where some may be exchanged as codes."""
        on_cpu = self._device.on_cpu
        whole = summed(route, bytes_, buckets, on_cpu=on_cpu)
        wire_s = whole.seconds
        if self._training.compressing.agrees:
            known_s = self._agreeing(route, buckets).seconds
            # Processors have both under way at once.
            wire_s = max(wire_s, known_s) if on_cpu else wire_s + known_s
        return _Sum(wire_s, 0.0, sent_bytes, whole.sent_bytes)

    def _agreeing(self, route: Route, buckets: int) -> Moved:
        return summed(route, _AGREEMENT_BYTES * buckets, buckets, on_cpu=self._device.on_cpu)

    def _late(self, plan: Plan) -> float:
        """The share of gradients whose sums along dp_replicate begin only when the backward pass is over.

        A stage's are whole when its last pass ends; what all tp ranks hold alike is summed along tp first, and FSDP
        sums what lies outside of the blocks last. Other engines sum those of divided models at the end.
        """
        chain, span = self._chain, (0, len(self._chain.units))
        own = chain.trainable(plan.tp, span)
        if plan.dp_shard == plan.tp == plan.pp == 1:
            momenta = self._training.compressing.momenta
            return float(momenta is not None and momenta.waits)
        if plan.pp > 1 or chain.profile.engine != "torch" or not own:
            return 1.0
        late = 0.0
        if plan.tp > 1:
            whole = chain.trainable(1, span)
            late += whole - (whole - own) * plan.tp / (plan.tp - 1)
        if plan.dp_shard > 1:
            late += own - chain.trainable(plan.tp, (chain.first, chain.first + chain.blocks))
        return min(1.0, max(0.0, late / own))

    def _coded(self, plan: Plan, route: Route, elements: float, buckets: int, scheme: str) -> _Sum:
        spec, ranks = spec_of(scheme), plan.dp_replicate
        told = messages(spec, self.bucket(plan, elements, buckets, scheme), ranks)
        rounds = together(moved(route, one, buckets, on_cpu=self._device.on_cpu) for one in told)
        compressing = self._training.compressing
        # Between processors codes leave with what ranks agree upon, where they can be taken back.
        early = self._device.on_cpu and [one.how for one in told] == ["gather"] and compressing.momenta is None
        early = early and spec.kind not in ("powersgd", "randomk")
        wire_s = rounds.seconds + (0.0 if early else self._agreeing(route, buckets).seconds)
        codec_s = elements * self._codec_s_per_element(scheme, ranks)
        return _Sum(wire_s, codec_s, buckets * sum(one.sent_bytes(ranks) for one in told), rounds.sent_bytes)

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
