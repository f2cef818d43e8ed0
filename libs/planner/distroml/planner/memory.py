"""Bytes that one rank needs at its peak, by part.

Parameters, gradients and optimizer state lie there all the time (fully sharded along dp_shard); activations by how
many microbatches the schedule keeps in flight. Gradients that no buffer holds (one microbatch, no sums along
dp_replicate) come while activations go, and the peak is the larger moment of both; how this project's runtime goes
through a step without stages is followed in `moments`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distroml.planner.codes import Buffer, kept_bytes, shard_working_bytes, working_bytes
from distroml.planner.compressing import NONE, spec_of
from distroml.planner.cost.chain import Chain, Span, saved_bytes
from distroml.planner.cost.compute import rank_parameters
from distroml.planner.cost.pipeline import in_flight
from distroml.planner.moments import Step, Sums
from distroml.planner.plan import Plan
from distroml.planner.prediction import BYTES, Corrections
from distroml.planner.profile import Unit
from distroml.planner.topology import Device
from distroml.planner.training import Training

_MIB = 1 << 20
_FLOAT32 = 4


class _Unit(NamedTuple):
    """The largest of a stage's units, on one tp rank."""

    elements: float
    transient_bytes: float


class Kept(NamedTuple):
    """Bytes that compression takes up on one rank.

    Attributes:
        residuals: from step to step.
        working: beside gradients while a bucket is exchanged along dp_replicate.
        shard_working: the same of a unit along dp_shard.
        bucket: of the largest bucket.
    """

    residuals: float = 0.0
    working: float = 0.0
    shard_working: float = 0.0
    bucket: float = 0.0


class _Lasting(NamedTuple):
    """What one rank holds however many microbatches are on their way.

    Attributes:
        parts: bytes by the names in `BYTES`, activations not among them.
        kept: what compression takes up.
        held: the units of its stages.
        saved: bytes that a sample leaves in each of them.
    """

    parts: dict[str, float]
    kept: Kept
    held: Sequence[Span]
    saved: Sequence[float]


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Peak memory of plans for one profile, kind of device and training."""

    chain: Chain
    device: Device
    training: Training
    corrections: Corrections

    def ranks(self, plan: Plan, spans: Sequence[Span], microbatch: int, microbatches: int) -> list[dict[str, float]]:
        """Parts of the peak on each pp coordinate; coordinates that are alike share one result."""
        lasting: dict[object, _Lasting] = {}
        seen: dict[object, dict[str, float]] = {}
        found: list[dict[str, float]] = []
        for rank in range(plan.pp):
            held = spans[rank :: plan.pp]
            kind = tuple(map(self.chain.alike, held))
            if kind not in lasting:
                lasting[kind] = self._lasting(plan, held, microbatch, microbatches)
            flying = self._flying(plan, microbatches, rank)
            if (kind, flying) not in seen:
                seen[kind, flying] = self._peak(plan, lasting[kind], flying, microbatch, microbatches)
            found.append(seen[kind, flying])
        return found

    def peak_bytes(self, plan: Plan, spans: Sequence[Span], microbatch: int, microbatches: int) -> float:
        """Most memory of any rank. Of coordinates whose stages are alike, the first holds most microbatches."""
        first: dict[object, int] = {}
        for rank in range(plan.pp):
            first.setdefault(tuple(map(self.chain.alike, spans[rank :: plan.pp])), rank)
        most = 0.0
        for rank in first.values():
            lasting = self._lasting(plan, spans[rank :: plan.pp], microbatch, microbatches)
            peak = self._peak(plan, lasting, self._flying(plan, microbatches, rank), microbatch, microbatches)
            most = max(most, sum(peak.values()))
        return most

    @staticmethod
    def _flying(plan: Plan, microbatches: int, rank: int) -> tuple[int, ...]:
        return in_flight(plan.schedule, plan.pp, plan.chunks, microbatches, rank) if plan.pp > 1 else (1,)

    def _lasting(self, plan: Plan, held: Sequence[Span], microbatch: int, microbatches: int) -> _Lasting:
        item, training, chain = self.chain.profile.parameter_itemsize, self.training, self.chain
        sizes = chain.sizes(plan.tp)
        trainable = sum(chain.trainable(plan.tp, span) for span in held)
        elements = trainable + sum(sizes.frozen.over(span) for span in held)
        largest = self._largest(plan, held, microbatch)
        gradient = training.gradient_bytes(item)
        parts = dict.fromkeys(BYTES, 0.0)
        parts["parameters"] = elements * item / plan.dp_shard
        parts["gradients"] = trainable * gradient / plan.dp_shard
        parts["optimizer"] = trainable * training.state_bytes(item) / plan.dp_shard
        if training.compressing.sync_every:
            # The parameters of the last meeting, and the outer momentum.
            parts["optimizer"] += 2 * trainable * item
        parts["gathered"] = self._gathered(plan, elements, trainable, largest.elements)
        parts["transient"] = largest.transient_bytes
        parts["buffers"] = self._buffers(plan, held, microbatch, microbatches, parts["gradients"])
        kept = self.kept(plan, held)
        parts["residuals"] = kept.residuals
        saved = chain.saved(plan.tp, plan.sequence_parallel, plan.recompute)
        return _Lasting(parts, kept, held, [saved.over(span) for span in held])

    def _peak(
        self, plan: Plan, lasting: _Lasting, flying: Sequence[int], microbatch: int, microbatches: int
    ) -> dict[str, float]:
        item, training, parts = self.chain.profile.parameter_itemsize, self.training, dict(lasting.parts)
        parts["activations"] = microbatch * sum(
            count * saved for saved, count in zip(lasting.saved, flying, strict=True)
        )
        whole = parts["gradients"]
        alone = plan.dp_shard == plan.tp == plan.pp == 1
        # Whole copies have buffers for gradients, as have engines with 32-bit sums.
        kept = alone or training.has_master(item)
        own = self.chain.profile.engine == "torch"
        sums = self._sums(plan, lasting.kept, alone=alone)
        if own and plan.pp == 1:
            self._follow(parts, plan, microbatch, kept or microbatches > 1, sums)
        else:
            if not kept and microbatches == 1 and plan.pp == 1:
                self._come_and_go(parts, plan, lasting.held[0], microbatch)
            # In a pipeline sums along dp_replicate come mostly after the passes, as in other engines of divided models.
            parts["buffers"] += lasting.kept.shard_working + (lasting.kept.working if alone else 0.0)
            if plan.dp_replicate > 1 and not kept:
                buffers = sums.held(whole, end=True) if own else whole + lasting.kept.working
                parts = self._after_passes(parts, whole, buffers)
        for part in BYTES[:-1]:
            parts[part] *= self.corrections.memory(part)
        moving = parts["gathered"] + parts["activations"] + parts["transient"] + parts["buffers"]
        parts["margin"] = moving * self.device.margin * self.corrections.memory("margin")
        return parts

    def kept(self, plan: Plan, held: Sequence[Span]) -> Kept:
        """What compression takes up on a rank with these stages: of several candidates as much as any needs."""
        compressing, chain, ranks = self.training.compressing, self.chain, plan.dp_replicate
        item = chain.profile.parameter_itemsize
        elements = sum(chain.trainable(plan.tp, span) for span in held)
        shard_working = 0.0
        if compressing.shard != NONE and plan.dp_shard > 1:
            shard_working = self._scattering(plan, self._largest(plan, held, 0).elements)
        own, most = math.ceil(elements / plan.dp_shard), plan.bucket_mb * _MIB / item
        if not compressing.on or ranks == 1 or not elements:
            bucket = min(most, own) * item if ranks > 1 else 0.0
            return Kept(shard_working=shard_working, bucket=bucket)
        whole = Buffer(own, chain.sides(plan.tp, plan.dp_shard, held))
        buckets = max(1, math.ceil(own / most))
        each = Buffer(-(-own // buckets), tuple(one._replace(many=one.many / buckets) for one in whole.matrices))
        fullest = chain.fullest(plan.tp, plan.dp_shard, held, most)
        specs = [spec_of(scheme) for scheme in compressing.schemes]
        working = max(working_bytes(spec, fullest, ranks) for spec in specs)
        if item != _FLOAT32:
            # Codes are made of 32-bit copies.
            working += _FLOAT32 * fullest.elements
        residuals = float(max(buckets * kept_bytes(spec, each, ranks) for spec in specs))
        if momenta := compressing.momenta:
            residuals += momenta.kept_bytes * own
            working = max(working, momenta.working_bytes * fullest.elements)
        return Kept(residuals, working, shard_working, fullest.elements * item)

    def _scattering(self, plan: Plan, elements: float) -> float:
        """Bytes beside the flat gradients of so many elements while they are summed along dp_shard as codes."""
        shard, item = self.training.compressing.shard, self.chain.profile.parameter_itemsize
        return 0.0 if shard == NONE else shard_working_bytes(spec_of(shard), math.ceil(elements), plan.dp_shard, item)

    def _sums(self, plan: Plan, kept: Kept, *, alone: bool) -> Sums:
        compressing = self.training.compressing
        if compressing.sync_every:
            # At a meeting the mean of a bucket comes up when its exchange is over.
            return Sums(kept.bucket, max(kept.working, kept.bucket), at_end=True)
        waits = compressing.momenta is not None and compressing.momenta.waits
        return Sums(kept.bucket, kept.working, filled=not alone, at_end=waits)

    def _largest(self, plan: Plan, held: Sequence[Span], microbatch: int) -> _Unit:
        # One representative of each shape stands for all.
        units = {unit.shape: unit for span in held for unit in self._ends(span)}.values()
        return _Unit(
            max((rank_parameters(unit, plan.tp) + unit.frozen_parameters for unit in units), default=0.0),
            max((self._transient(unit, plan) * microbatch for unit in units), default=0.0),
        )

    def _ends(self, span: Span) -> Sequence[Unit]:
        units = self.chain.units
        if not self.chain.uniform or span[1] - span[0] <= 3:
            return units[span[0] : span[1]]
        return (units[span[0]], units[span[0] + 1], units[span[1] - 1])

    def _transient(self, unit: Unit, plan: Plan) -> float:
        """Bytes per sample while the unit runs; a recomputed unit has all its activations then."""
        split = unit.split
        own = unit.transient_bytes * (1 - split + split / plan.tp)
        again = 0.0
        if unit.kind == "block" and plan.recompute != "none":
            again = saved_bytes(unit, plan.tp, plan.sequence_parallel, "none") - saved_bytes(
                unit, plan.tp, plan.sequence_parallel, plan.recompute
            )
        return own + max(0.0, again)

    def _gathered(self, plan: Plan, elements: float, trainable: float, largest: float) -> float:
        item, training = self.chain.profile.parameter_itemsize, self.training
        if plan.dp_shard == 1:
            # Computing in fewer bits than are stored makes copies, which live until the backward pass.
            return elements * training.compute_itemsize if training.compute_itemsize < item else 0.0
        gradient = training.gradient_bytes(item)
        keeps = plan.pp > 1 and self.chain.profile.engine == "torch"
        if plan.reshard_after_forward and not keeps:
            # The unit that runs, the next one on its way, and the gradients of one before they are scattered.
            return min(elements, 2 * largest) * training.compute_itemsize + largest * gradient
        kept = elements * training.compute_itemsize
        # A stage that scatters once a step sums whole gradients until then.
        once = plan.pp > 1 and not keeps
        return kept + (trainable if once else largest) * gradient

    def _follow(self, parts: dict[str, float], plan: Plan, microbatch: int, lasting: bool, sums: Sums) -> None:
        """Put in what is there when this project's runtime holds most."""
        item, training = self.chain.profile.parameter_itemsize, self.training
        step = Step(
            chain=self.chain,
            plan=plan,
            microbatch=microbatch,
            gather_bytes=training.compute_itemsize,
            gradient_bytes=training.gradient_bytes(item),
            lasting=lasting,
            transient=lambda unit: self._transient(unit, plan),
            sums=sums,
            scattering=lambda elements: self._scattering(plan, elements),
        )
        copies = parts["gathered"] if plan.dp_shard == 1 else 0.0
        parts.update(step.fullest()._asdict())
        parts["gathered"] += copies

    def _come_and_go(self, parts: dict[str, float], plan: Plan, span: Span, microbatch: int) -> None:
        """Take gradients and activations at the moment of the backward pass when both together are largest."""
        chain, item = self.chain, self.chain.profile.parameter_itemsize
        saved = chain.saved(plan.tp, plan.sequence_parallel, plan.recompute)
        per_element = self.training.gradient_bytes(item) / plan.dp_shard
        trainable = chain.sizes(plan.tp).trainable
        best = (-1.0, 0.0, 0.0)
        for at in range(span[0], span[1] + 1):
            activations = saved.over((span[0], at)) * microbatch
            gradients = min(trainable.over((at, span[1])) * per_element, parts["gradients"])
            best = max(best, (activations + gradients, activations, gradients))
        _, parts["activations"], parts["gradients"] = best

    @staticmethod
    def _after_passes(parts: dict[str, float], gradients: float, buffers: float) -> dict[str, float]:
        """The larger of two moments: the passes, and the sums along dp_replicate after them, with their buffers."""
        passing = {"activations": 0.0, "transient": 0.0, "gathered": 0.0}
        after = {**parts, **passing, "gradients": gradients, "buffers": buffers}
        return after if sum(after.values()) > sum(parts.values()) else parts

    def _buffers(self, plan: Plan, held: Sequence[Span], microbatch: int, microbatches: int, gradients: float) -> float:
        bucket = min(plan.bucket_mb * _MIB, gradients) if plan.dp_replicate > 1 else 0.0
        if plan.pp == 1:
            return bucket
        profile = self.chain.profile
        share = plan.tp if profile.engine == "megatron" else 1
        # torch's stages allocate a buffer for each microbatch beforehand; engines that scatter reuse two.
        slots = 2 if profile.engine == "megatron" else microbatches
        crossing = 0.0
        for start, end in held:
            if start > 0:
                crossing += profile.units[start - 1].output_bytes
            if end < len(profile.units):
                crossing += profile.units[end - 1].output_bytes
        return bucket + slots * crossing * microbatch / share
