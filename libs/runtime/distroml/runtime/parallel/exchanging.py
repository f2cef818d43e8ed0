"""What the thread of an exchange does: it exchanges gradients bucket by bucket, and answers what ranks ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import torch
import torch.distributed as dist

from distroml.runtime.comm import WireCount
from distroml.runtime.comm.rounds import Peers, drive
from distroml.runtime.compress import Round, TakenBack, Turn
from distroml.runtime.parallel.agreement import Agreed, agreed_on, breaks, told_of
from distroml.runtime.parallel.asking import Asked, answer
from distroml.runtime.parallel.buckets import Segment
from distroml.runtime.parallel.buffers import Buffer, Took
from distroml.runtime.parallel.culprits import NonFinite, found_among
from distroml.runtime.parallel.sampling import Sample, take_sample
from distroml.runtime.parallel.steps import Done, Given, Step
from distroml.runtime.parallel.substitutes import Substitute
from distroml.runtime.typed import norm_of

_AXIS = "dp_replicate"
# What ranks tell one another beside exchanges counts under this name; what travels with codes counts with them.
_AGREEMENT = "agreement"
# What shows how fast the link is.
_PROBE = "probe"
# What shows whether schemes point where the plain sum does.
_SAMPLE = "sample"


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

    def open(self, step: Step, terms: torch.Tensor, *, summed: bool) -> None:
        """A step's count of loss terms, float64 `[1]`, over all ranks or this one's part; before its first exchange."""
        for one in self.buffers.values():
            one.advance(step.number)
        step.plain = self._adapts and all(one.plain for one in self.buffers.values())
        step.terms = terms
        if not (summed or step.plain):
            step.counting = self._peers.tell(terms)
            self._count(_AGREEMENT)

    def exchange(self, step: Step, buffer: Buffer, flat: torch.Tensor, unreached: Sequence[Segment]) -> None:
        """Exchange one bucket; `unreached` are its parameters that no pass reached on this rank."""
        buffer.aside.clear()
        if not buffer.spec.numel:
            return
        if step.plain:
            self._look_at(step, buffer, flat)
            started = time.perf_counter()
            self._peers.sum(flat)
            buffer.took = Took(wire_s=time.perf_counter() - started)
            buffer.note(step.number, self._count(buffer.scheme.name))
            return
        here, began_s = flat.device.type == "cpu", time.thread_time()
        plain = buffer.plain
        work = flat if flat.dtype == torch.float32 or plain else flat.float()
        # Only a controller looks at how large they are, and not at every step.
        kept = [one for one in (buffer.state.residual, buffer.state.owned) if step.asked and one is not None]
        given = Given(step, buffer, work, step.unit(), told_of(work, kept), tuple(unreached))
        if here and plain and self.substitute is None:
            done = self._sum_meanwhile(given)
        elif here and self._may_leave_early(given):
            done = self._code_meanwhile(given)
        else:
            done = self._code_once_agreed(given, here=here)
        if done.agreed.broken:
            self._blame(self._group, step, buffer, done.suspect)
            step.broken = True
        if step.broken:
            for segment in buffer.spec.segments:
                flat[segment.offset : segment.offset + segment.numel] = math.nan
        elif work is not flat:
            flat.copy_(work)
        coded_s = time.thread_time() - began_s if here and not plain else 0.0
        buffer.took = replace(done.took, coded_s=coded_s)
        cosine = None if done.sample is None else done.sample.cosine(work)
        buffer.note(step.number, self._count(buffer.scheme.name), done.agreed, cosine)

    def _sum_meanwhile(self, given: Given) -> Done:
        """Nothing of a plain sum hangs on what is agreed: both are under way at once.

        Elsewhere than on a processor, to see beforehand whether the sum will hide whose fault it is would hold up the
        device.
        """
        suspect = self._suspect(given.buffer, given.work) if breaks(given.told) else ""
        started = time.perf_counter()
        telling = self._peers.tell(given.told)
        self._count(_AGREEMENT)
        summing = self._peers.start(given.work)
        telling.wait()
        summing.wait()
        took = Took(wire_s=time.perf_counter() - started)
        return Done(agreed_on(given.told, given.unit), took, suspect)

    def _may_leave_early(self, given: Given) -> bool:
        """Whether codes may be on their way before it is agreed upon that they should be.

        Not where it will be asked how long they took: a rank that comes late finds the others' there already, and would
        take the link for a fast one.
        """
        step, buffer = given.step, given.buffer
        return (
            self.substitute is None
            and given.unit > 0
            and not (step.broken or step.timed or self._samples(step, buffer))
            and buffer.scheme.takes_back(buffer.layout, self._peers.world_size)
        )

    def _code_meanwhile(self, given: Given) -> Done:
        """What ranks agree on travels with the codes; those that were for nothing are taken back."""
        broken = breaks(given.told)
        suspect = self._suspect(given.buffer, given.work) if broken else ""
        told = given.told.view(torch.uint8)
        agreed: Agreed | None = None

        def answer(wanted: Round) -> torch.Tensor:
            nonlocal agreed
            if broken:
                # The others wait for something, and will not read it.
                wanted = replace(wanted, payload=wanted.payload.zero_(), fill=None)
            wanted.payload[-told.numel() :] = told
            back = self._peers.make(wanted)
            everyones = back[:, -told.numel() :].contiguous().view(given.told.dtype)
            agreed = agreed_on(everyones.sum(0), given.unit)
            if agreed.broken:
                raise TakenBack
            return back

        with suppress(TakenBack):
            self._drive(given, answer, tail=told.numel())
        assert agreed is not None
        # What it took on the wire says nothing of the link.
        return Done(agreed, Took(), suspect)

    def _code_once_agreed(self, given: Given, *, here: bool) -> Done:
        """Ranks agree first."""
        step, buffer, work = given.step, given.buffer, given.work
        started = time.perf_counter()
        self._peers.sum(given.told)
        self._count(_AGREEMENT)
        took = Took(latency_s=time.perf_counter() - started if here else 0.0)
        agreed = agreed_on(given.told, given.unit)
        if step.broken or agreed.broken:
            suspect = agreed.broken and not bool(norm_of(work).isfinite())
            return Done(agreed, took, self._suspect(buffer, work) if suspect else "")
        sample = self._sample(step, buffer, work) if given.unit > 0 else None

        def answer(wanted: Round) -> torch.Tensor:
            # Where it is timed for a controller, nothing is to arrive while codes are still written.
            wanted = replace(wanted, payload=wanted.filled(), fill=None) if self._adapts else wanted
            return self._peers.make(wanted)

        if given.unit > 0 or buffer.plain:
            took = replace(took, wire_s=self._drive(given, answer))
        return Done(agreed, took, sample=sample)

    def _drive(self, given: Given, answer: Callable[[Round], torch.Tensor], *, tail: int = 0) -> float:
        """Exchange a bucket by its scheme; seconds of the answers. Raises `TakenBack` where `answer` does."""
        buffer, peers = given.buffer, self._peers
        # What takes the place of gradients is made of them later.
        finite = self.substitute is None
        turn = Turn(
            peers.rank, peers.world_size, given.step.number, buffer.number, self._seed, given.unit, finite, tail
        )
        if not buffer.plain or buffer.velocity is not None:
            buffer.lay_aside(given.unreached)
        if self.substitute is not None and given.unit > 0:
            self.substitute.before(buffer, given.work, turn)
        driven = drive(buffer.scheme.rounds(given.work, buffer.layout, buffer.state, turn), answer)
        if self.substitute is not None:
            self.substitute.after(buffer)
        return driven.answering_s

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

    def _samples(self, step: Step, buffer: Buffer) -> bool:
        """Whether it is this bucket's turn to be sampled; the same on every rank."""
        return step.sampled == buffer.number and not buffer.plain

    def _sample(self, step: Step, buffer: Buffer, work: torch.Tensor) -> Sample | None:
        """A part of the bucket summed as it is, where it is this one's turn."""
        if self._group is None or not self._samples(step, buffer):
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
