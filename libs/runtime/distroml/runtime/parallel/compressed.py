"""Exchanges of gradients by compression schemes, on a thread of their own, while the backward pass goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from distroml.runtime.comm.algorithms import Chosen
from distroml.runtime.comm.lane import Job, Lane
from distroml.runtime.comm.rounds import Peers
from distroml.runtime.compress import Scheme
from distroml.runtime.compress.schemes import Dense
from distroml.runtime.elastic import Pending
from distroml.runtime.parallel.asking import Asked
from distroml.runtime.parallel.buckets import BucketSpec, Segment
from distroml.runtime.parallel.buffers import Buffer, Measured
from distroml.runtime.parallel.culprits import NonFinite
from distroml.runtime.parallel.exchanging import Exchanging
from distroml.runtime.parallel.steps import Step
from distroml.runtime.parallel.substitutes import Substitute


class CompressedExchange:
    """`Exchange` along dp_replicate by a scheme for each bucket. What comes out is the same to the bit on every rank.

    A step is `open()`, any number of `begin()` in one order on all ranks, `announce()`, `announce_sum()` or `counted()`
    at any time between, and the waits. All collectives are made on one thread, in a process group that nothing else
    uses, bucket by bucket, all rounds of one before the next: so nothing comes between, and nothing of it holds up the
    backward pass.

    Ranks agree on whether a gradient is no finite number before its bucket is exchanged or, where a scheme can take
    back what it did, while it is: no rank's residuals change by that bucket, but for rounding of their sums with its
    gradients, or by a later one of the step, their sums are NaN everywhere, and `non_finite` tells whose fault it is.
    Buckets before it were exchanged as ever: what they gave and what is kept of them add up, so that a step that is
    taken nevertheless loses nothing. Nor does one that reached a parameter on no rank: nobody heeds what was told of
    that, and what was kept of it is kept until it is reached again.

    One that `adapts`, and compresses nothing at all in a step, costs no more than plain sums: nothing is agreed upon
    then, and `non_finite` has what this rank is to blame for, on a processor only.

    Args:
        group: the ranks that differ along dp_replicate only, of this exchange alone; None: this rank is the only one,
            and gets what was kept by more ranks before.
        scheme: of every bucket, until `set_scheme`.
        seed: of the job.
        device: of the gradients.
        sums: along the axis, of this exchange alone; None: the back end's own over `group`.
        adapts: whether schemes are chosen by what is measured.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        scheme: Scheme,
        *,
        seed: int,
        device: torch.device,
        sums: Chosen | None = None,
        adapts: bool = False,
    ) -> None:
        self._peers = Peers(group, sums, sums.arrangement if sums is not None else None)
        self._exchanging = Exchanging(group, self._peers, seed=seed, device=device, adapts=adapts)
        self._device = device
        self.rank = self._peers.rank
        self.world_size = self._peers.world_size
        self.sums = sums
        self._scheme = scheme if self.world_size > 1 else Dense()
        self.wire = self._exchanging.wire
        self._buffers: dict[int, Buffer] = {}
        self._jobs: dict[int, Job] = {}
        self._step = Step(0)
        self._asking = False
        self._timed = adapts
        self._sampled: int | None = None
        self._lane = Lane("distroml-exchange", device)

    @property
    def non_finite(self) -> tuple[NonFinite, ...]:
        """Whose gradients were no finite numbers in the step that was opened last; after the waits."""
        return self._exchanging.non_finite

    @property
    def substitute(self) -> Substitute | None:
        """What is exchanged in place of gradients, where an optimizer asks for it."""
        return self._exchanging.substitute

    @substitute.setter
    def substitute(self, substitute: Substitute) -> None:
        self._exchanging.substitute = substitute

    @property
    def innocent(self) -> Callable[[], bool]:
        """Whether this rank's gradients are known to be broken by another's, with which they were summed before."""
        return self._exchanging.innocent

    @innocent.setter
    def innocent(self, innocent: Callable[[], bool]) -> None:
        self._exchanging.innocent = innocent

    # ---- before the first step

    def prepare(self, buckets: Mapping[int, BucketSpec]) -> None:
        """Make the state of every bucket that will be exchanged.

        Raises:
            ValueError: a parameter has no real floating-point gradient.
        """
        for spec in buckets.values():
            if not spec.dtype.is_floating_point:
                raise ValueError(
                    f"the gradient of {spec.segments[0].name} is {spec.dtype}, and compression knows real numbers "
                    "only; use compress='none'"
                )
        self._buffers = {
            number: Buffer(number, spec, self._scheme, self.world_size) for number, spec in sorted(buckets.items())
        }
        self._exchanging.buffers = self._buffers

    @property
    def buffers(self) -> list[Buffer]:
        """What is kept of each bucket, in their order; not to be touched while exchanges are under way."""
        return list(self._buffers.values())

    @property
    def state_bytes(self) -> int:
        """Memory that residuals and other states take on this rank."""
        return sum(buffer.state_bytes for buffer in self._buffers.values())

    # ---- a step

    @property
    def step(self) -> int:
        """The number of the step that was opened last."""
        return self._step.number

    def idle(self, number: int) -> bool:
        """Whether a bucket is its own sum: no other rank has a part of it, and nothing is kept of it."""
        return self.world_size == 1 and self._buffers[number].plain and self.substitute is None

    def open(self, step: int) -> None:
        """A new step. The waits of the step before are over."""
        self._note_waits()
        self._step = Step(step, asked=self._asking, timed=self._timed, sampled=self._sampled)
        self._asking, self._sampled = False, None
        self._exchanging.non_finite = ()

    def _note_waits(self) -> None:
        for number, job in self._jobs.items():
            buffer = self._buffers[number]
            buffer.took = replace(buffer.took, waited_s=job.waited_s)
        self._jobs.clear()

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor, unreached: Sequence[Segment] = ()) -> Pending:
        """See `Exchange`. Padding in `flat` is zero, before and after."""
        if self.idle(number):
            return Pending(None)
        work = functools.partial(self._exchanging.exchange, self._step, self._buffers[number], flat, tuple(unreached))
        job = self._lane.job(work)
        self._jobs[number] = job
        if self._step.told:
            self._lane.begin(job)
        else:
            self._step.held.append(job)
        return Pending(job)

    def take_back(self, dropped: Collection[str]) -> None:
        """See `Exchange`: what is kept of these parameters' gradients is as it was before the step."""

        def restore() -> None:
            for buffer in self._buffers.values():
                buffer.put_back(dropped)

        if any(buffer.aside for buffer in self._buffers.values()):
            self._lane.do(restore)

    def announce(self, terms: torch.Tensor) -> None:
        """This rank's count of loss terms in this step is `terms`, and its last forward pass is over.

        Every rank announces, or none; only where the ranks of this axis are all there are.
        """
        self._tell(terms.detach().double().clone(), summed=False)

    def announce_sum(self, terms: torch.Tensor, summing: Pending) -> None:
        """The count over all ranks will be what `terms`, float64, is once `summing` is over. Every rank, or none."""
        self._tell(terms, summed=True, summing=summing)

    def counted(self, terms: torch.Tensor) -> None:
        """The count over all ranks is `terms`; where it was announced, it is known already."""
        if not self._step.told:
            self._tell(terms.detach().double().clone(), summed=True)

    def _tell(self, terms: torch.Tensor, *, summed: bool, summing: Pending | None = None) -> None:
        step = self._step
        step.told = True

        def take() -> None:
            if summing is not None:
                summing.wait()
            self._exchanging.open(step, terms.reshape(1), summed=summed)

        # As a job, so that on CUDA exchanges that were begun before see it, too.
        self._lane.begin(self._lane.job(take))
        for job in step.held:
            self._lane.begin(job)
        step.held.clear()

    def set_scheme(self, bucket: int, scheme: Scheme, from_step: int) -> None:
        """Exchange a bucket by another scheme from a step on that has not begun. All ranks of the axis do so alike.

        What was kept of gradients is fed back by the new scheme; other state begins anew.
        """
        if from_step <= self._step.number:
            raise ValueError(f"bucket {bucket} cannot change at step {from_step}: step {self._step.number} has begun")
        if self.world_size > 1:
            self._buffers[bucket].changes[from_step] = scheme

    def go_on(self, from_step: int) -> None:
        """Exchange every bucket by the scheme that this was made with from a step on, whichever was in force before."""
        for number in self._buffers:
            self.set_scheme(number, self._scheme, from_step)

    def measured(self) -> list[Measured]:
        """What the last step's exchanges came to, in the order of buckets; call it after the waits."""
        return [buffer.measured for buffer in self._buffers.values() if buffer.measured is not None]

    def set_timed(self, timed: bool) -> None:
        """Whether exchanges of the steps that are opened from now on tell how fast the link is, as those that adapt do.

        They begin together then, and are a little slower for it. Every rank says the same.
        """
        self._timed = timed

    def set_sampled(self, bucket: int | None) -> None:
        """Sum a part of this bucket as it is, too, in the step that is opened next. Every rank says the same."""
        self._sampled = bucket

    def ask(self, values: Sequence[float], *, probe_bytes: int = 0) -> Asked:
        """Begin to make `values` the least of any rank, and to time a dense sum, before what is begun next.

        With it ranks tell one another what the exchanges of the step before took, which `measured` then has. Every
        rank of the axis asks the same, between two steps.
        """
        self._note_waits()
        self._asking = True
        took = [seconds for one in self._buffers.values() for seconds in one.took.seconds]
        told = torch.tensor([*values, 0.0, *took], dtype=torch.float64, device=self._device)
        asked = Asked(told, len(values))
        asked.job = self._lane.job(functools.partial(self._exchanging.answer, asked, probe_bytes))
        self._lane.begin(asked.job)
        return asked

    # ---- what is kept

    def fold(self) -> dict[int, torch.Tensor]:
        """What all ranks together keep of each bucket, normalised, residuals of owners among it. Collective.

        Buckets of which nothing is ever kept are left out. Raises `PeerLost`.
        """
        folded: dict[int, torch.Tensor] = {}

        def sum_up() -> None:
            folded.update(self._exchanging.fold())

        self._lane.do(sum_up)
        return folded

    def keep_share(self, folded: Mapping[int, torch.Tensor]) -> None:
        """Keep an equal share of what ranks kept together, as `fold` gave it at any world size."""
        for number, total in folded.items():
            self._buffers[number].keep(total / self.world_size)

    def close(self) -> None:
        """End the thread; what is under way is given up. Repeatable."""
        self._lane.close()
