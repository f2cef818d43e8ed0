"""What the thread of an exchange does: it exchanges gradients bucket by bucket, and answers what ranks ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import torch.distributed as dist

from distroml.runtime.comm import WireCount
from distroml.runtime.comm.lane import Job
from distroml.runtime.comm.rounds import Peers, drive
from distroml.runtime.compress import Turn
from distroml.runtime.parallel.agreement import agreed_on, breaks, told_of
from distroml.runtime.parallel.asking import Asked, answer
from distroml.runtime.parallel.buckets import Segment
from distroml.runtime.parallel.buffers import Buffer, Took
from distroml.runtime.parallel.culprits import NonFinite, found_among
from distroml.runtime.parallel.sampling import Sample, sampled_bucket, take_sample
from distroml.runtime.parallel.substitutes import Substitute
from distroml.runtime.typed import norm_of

_AXIS = "dp_replicate"
# What ranks tell one another before each exchange counts under this name.
_AGREEMENT = "agreement"
# What shows how fast the link is.
_PROBE = "probe"
# What shows whether schemes point where the plain sum does.
_SAMPLE = "sample"


@dataclass(slots=True)
class Step:
    """One step's exchanges. They begin once its count of loss terms is announced or known."""

    number: int
    terms: torch.Tensor | None = None
    summed: bool = False
    held: list[Job] = field(default_factory=lambda: list[Job]())
    told: bool = False
    # Whether any bucket so far had a gradient that is no finite number.
    broken: bool = False
    # Whether nothing at all is compressed in it; None: not known yet.
    plain: bool | None = None
    # Whether ranks share in it what the one before took.
    asked: bool = False


class Exchanging:
    """Everything that one exchange's thread does, one job after another: all collectives of the exchange are made here.

    The training thread hands in its jobs; what it sets here it sets between two steps.

    Args:
        group: the ranks that exchange; None: this one alone.
        peers: the same ranks, as rounds are made with them.
        seed: of the job.
        device: of the gradients.
        adapts: whether schemes are chosen by what is measured.

    Attributes:
        buffers: of each bucket, by number.
        wire: what was sent.
        non_finite: whose fault it was where a gradient of this step was no finite number.
        substitute: what is exchanged in place of gradients.
        innocent: whether it is known that this rank's gradients are broken by another's, with which they were summed
            before.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, peers: Peers, *, seed: int, device: torch.device, adapts: bool
    ) -> None:
        self._group = group
        self._peers = peers
        self._seed = seed
        self._device = device
        self._adapts = adapts
        self.buffers: Mapping[int, Buffer] = {}
        self.wire = WireCount()
        self.non_finite: tuple[NonFinite, ...] = ()
        self.substitute: Substitute | None = None
        self.innocent: Callable[[], bool] = lambda: False

    def exchange(self, step: Step, buffer: Buffer, flat: torch.Tensor, unreached: Sequence[Segment]) -> None:
        """Exchange one bucket; `unreached` are its parameters that no pass reached on this rank."""
        buffer.aside.clear()
        if not buffer.spec.numel:
            return
        if step.plain is None:
            for one in self.buffers.values():
                one.advance(step.number)
            step.plain = self._adapts and all(one.plain for one in self.buffers.values())
        if step.plain:
            self._look_at(step, buffer, flat)
            started = time.perf_counter()
            self._peers.sum(flat)
            buffer.took = Took(wire_s=time.perf_counter() - started)
            buffer.note(step.number, self._count(buffer.scheme.name))
            return
        plain = buffer.plain
        here, began_s = flat.device.type == "cpu", time.thread_time()
        work = flat if flat.dtype == torch.float32 or plain else flat.float()
        assert step.terms is not None
        # Only a controller looks at how large they are, and not at every step.
        kept = [one for one in (buffer.state.residual, buffer.state.owned) if step.asked and one is not None]
        told = told_of(torch.zeros_like(step.terms) if step.summed else step.terms, work, kept)
        summing, suspect = None, ""
        started = time.perf_counter()
        if plain and self.substitute is None and here:
            # Nothing of a plain sum hangs on what is agreed: both are under way at once. Elsewhere than on a processor,
            # to see beforehand whether the sum will hide whose fault it is would hold up the device.
            suspect = self._suspect(buffer, work) if breaks(told) else ""
            telling = self._peers.tell(told)
            self._count(_AGREEMENT)
            summing = self._peers.start(work)
            telling.wait()
            summing.wait()
        else:
            self._peers.sum(told)
            self._count(_AGREEMENT)
        waited_s = time.perf_counter() - started
        agreed = agreed_on(told, float(step.terms) if step.summed else None)
        sample = self._sample(step, buffer, work) if agreed.unit > 0 and not (step.broken or agreed.broken) else None
        took = Took(wire_s=waited_s) if summing is not None else Took(latency_s=waited_s if here else 0.0)
        if agreed.broken:
            if summing is None and not bool(norm_of(work).isfinite()):
                suspect = self._suspect(buffer, work)
            self._blame(self._group, step, buffer, suspect)
            step.broken = True
        if step.broken:
            for segment in buffer.spec.segments:
                flat[segment.offset : segment.offset + segment.numel] = math.nan
        elif summing is None and (agreed.unit > 0 or plain):
            # What takes the place of gradients is made of them later.
            rank, ranks, finite = self._peers.rank, self._peers.world_size, self.substitute is None
            turn = Turn(rank, ranks, step.number, buffer.number, self._seed, agreed.unit, finite)
            if not plain or buffer.velocity is not None:
                buffer.lay_aside(unreached)
            if self.substitute is not None and agreed.unit > 0:
                self.substitute.before(buffer, work, turn)
            rounds = buffer.scheme.rounds(work, buffer.layout, buffer.state, turn)
            took = replace(took, wire_s=drive(rounds, self._peers.make).answering_s)
            if self.substitute is not None:
                self.substitute.after(buffer)
            if work is not flat:
                flat.copy_(work)
        if here and not plain:
            took = replace(took, coded_s=time.thread_time() - began_s)
        buffer.took = took
        cosine = None if sample is None else sample.cosine(work)
        buffer.note(step.number, self._count(buffer.scheme.name), agreed, cosine)

    def answer(self, asked: Asked, probe_bytes: int) -> None:
        """Answer what was asked, and note what every bucket's last exchange took at least."""
        if self._group is not None:
            answer(self._group, asked, probe_bytes)
            for name, size in ((_PROBE, probe_bytes), (_AGREEMENT, asked.numbers.nbytes)):
                for level, sent in self._peers.bytes_of("sum", size).items():
                    self.wire.add(_AXIS, level, name, sent)
            least = iter(asked.rest)
            for buffer in self.buffers.values():
                buffer.least = Took(*islice(least, len(Took().seconds)))

    def fold(self) -> dict[int, torch.Tensor]:
        """See `CompressedExchange.fold`."""
        folded: dict[int, torch.Tensor] = {}
        for number, buffer in self.buffers.items():
            if not buffer.plain:
                folded[number] = buffer.kept()
                self._peers.sum(folded[number])
        # Of a checkpoint, not of a step.
        self._peers.take()
        return folded

    def _sample(self, step: Step, buffer: Buffer, work: torch.Tensor) -> Sample | None:
        """A part of the bucket summed as it is, where it is this one's turn; the same on every rank."""
        if not self._adapts or self._group is None or buffer.plain:
            return None
        filled = [one.number for one in self.buffers.values() if one.spec.numel]
        place = sampled_bucket(step.number, len(filled))
        if place < 0 or filled[place] != buffer.number:
            return None
        sample = take_sample(work, step.number, self._group)
        for level, sent in self._peers.bytes_of("sum", sample.nbytes).items():
            self.wire.add(_AXIS, level, _SAMPLE, sent)
        return sample

    def _look_at(self, step: Step, buffer: Buffer, flat: torch.Tensor) -> None:
        """Note where this rank's gradient is no finite number: the sum will not tell whose it was.

        Others note their own. Elsewhere than on a processor a look would hold up the device.
        """
        if flat.device.type == "cpu" and not bool(norm_of(flat).isfinite()):
            self._blame(None, step, buffer, self._suspect(buffer, flat))

    def _blame(self, group: dist.ProcessGroup | None, step: Step, buffer: Buffer, suspect: str) -> None:
        """Note whose gradient it was among the ranks of `group`; None: this one alone."""
        names = [segment.name for segment in buffer.spec.segments]
        self.non_finite += found_among(group, names, suspect, step.number, self._device)

    def _suspect(self, buffer: Buffer, work: torch.Tensor) -> str:
        return "" if self.innocent() else buffer.suspect(work)

    def _count(self, scheme: str) -> int:
        """Count what was sent since the last call under `scheme`. Returns its bytes."""
        sent = self._peers.take()
        for level, size in sent.items():
            self.wire.add(_AXIS, level, scheme, size)
        return sent.total()
