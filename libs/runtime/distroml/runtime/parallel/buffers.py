"""What an exchange keeps of one bucket: its scheme, the scheme's state, and how the last exchange went."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch

from distroml.runtime.compress import Layout, Piece, Scheme, State, succeeded
from distroml.runtime.parallel.agreement import Agreed
from distroml.runtime.parallel.buckets import BucketSpec, Segment
from distroml.runtime.typed import floats, norm_of


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one bucket's exchange.

    Attributes:
        wire_s: from handing in its messages to their answers; 0 where it was not timed.
        coded_s: of a processor, for all beside that: what a busy machine makes wait is not in them. 0 for plain sums,
            and where another device codes.
        latency_s: of the few numbers that ranks tell one another first; 0 where they tell none.
        waited_s: for which the training thread waited.
    """

    wire_s: float = 0.0
    coded_s: float = 0.0
    latency_s: float = 0.0
    waited_s: float = 0.0

    @property
    def seconds(self) -> tuple[float, ...]:
        """All of them; `Took(*seconds)` is an equal one."""
        return self.wire_s, self.coded_s, self.latency_s, self.waited_s


@dataclass(frozen=True, slots=True)
class Measured:
    """What one bucket's exchange came to; the same numbers on every rank that takes part in it.

    Attributes:
        bucket: its number.
        step: that the exchange was of.
        scheme: that it went by.
        sent_bytes: by one rank, in this step.
        gradient_norm: root of the sum over ranks of each one's squared norm, normalised.
        residual_norm: the same of what they kept before this exchange; 0 where ranks were asked nothing in this step.
        took: what the exchange took in the step before, each of it on the rank that it took least; all 0 where ranks
            were not asked since. Whoever comes last waits for nobody: others' seconds have its delay in them, and
            whatever held up their processors.
        cosine: of a slice of what came out to the same slice of the plain sum; None where none was sampled.
    """

    bucket: int
    step: int
    scheme: str
    sent_bytes: int
    gradient_norm: float
    residual_norm: float
    took: Took
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class Aside:
    """What was kept of one parameter before an exchange: of its gradients, and its velocity; None where nothing was."""

    segment: Segment
    kept: torch.Tensor | None
    velocity: torch.Tensor | None

    @property
    def part(self) -> slice:
        """Where it lies in the bucket."""
        return slice(self.segment.offset, self.segment.offset + self.segment.numel)


@dataclass(slots=True)
class Buffer:
    """One bucket's part of an exchange. It belongs to the exchange's thread between a step's begin and end.

    Attributes:
        number: of the bucket.
        spec: where gradients lie in it.
        scheme: that the next exchange goes by, unless a change is due.
        world_size: ranks that take part.
        alike: further ranks than those hold it alike, and exchange it among themselves.
        layout: what schemes know of the bucket.
        state: of the scheme.
        changes: schemes to come, by the step from which they hold.
        took: by the last exchange, on this rank.
        least: of all ranks, each number by itself; 0 where ranks were not asked.
        measured: of the last exchange.
        velocity: this rank's own momentum, where that is exchanged in place of gradients.
        aside: what was kept before the last exchange of parameters that this rank had not reached.
    """

    number: int
    spec: BucketSpec
    scheme: Scheme
    world_size: int
    alike: bool = False
    layout: Layout = field(init=False)
    state: State = field(init=False)
    changes: dict[int, Scheme] = field(default_factory=lambda: dict[int, Scheme]())
    took: Took = Took()
    least: Took = Took()
    measured: Measured | None = None
    velocity: torch.Tensor | None = None
    aside: list[Aside] = field(default_factory=lambda: list[Aside]())

    def __post_init__(self) -> None:
        spec = self.spec
        self.layout = Layout(spec.numel, tuple(Piece(one.name, one.offset, one.shape) for one in spec.segments))
        self.state = self.scheme.prepare(self.layout, self.world_size, spec.device)

    @property
    def plain(self) -> bool:
        """Whether the next exchange is nothing but a sum."""
        return self.scheme.name == "none" and self.state.residual is None and self.state.owned is None

    def advance(self, step: int) -> None:
        """Go over to the scheme that holds at `step`: what was kept of gradients stays, nothing else of the state."""
        due = [begin for begin in self.changes if begin <= step]
        if due:
            scheme = self.changes[max(due)]
            for begin in due:
                del self.changes[begin]
            if scheme != self.scheme:
                self.scheme = scheme
                self.state = succeeded(scheme, self.layout, self.world_size, self.spec.device, self.state)

    def note(self, step: int, sent_bytes: int, agreed: Agreed | None = None, cosine: float | None = None) -> None:
        """The exchange of a step is over; `agreed` where ranks agreed on anything."""
        self.measured = Measured(
            bucket=self.number,
            step=step,
            scheme=self.scheme.name,
            sent_bytes=sent_bytes,
            gradient_norm=0.0 if agreed is None else agreed.gradient_norm,
            residual_norm=0.0 if agreed is None else agreed.residual_norm,
            took=self.least,
            cosine=cosine,
        )

    def suspect(self, values: torch.Tensor) -> str:
        """The parameter whose gradient in this bucket is no finite number, or the largest where the norm overflows."""
        parts = [values[one.offset : one.offset + one.numel] for one in self.spec.segments]
        found = floats(torch.stack([norm_of(part) for part in parts]))
        place = next((n for n, norm in enumerate(found) if not math.isfinite(norm)), found.index(max(found)))
        return self.spec.segments[place].name

    def kept(self) -> torch.Tensor:
        """All that this rank has kept of gradients, normalised, in the buffer's layout: a copy."""
        total = torch.zeros(self.spec.numel, device=self.spec.device)
        if self.state.residual is not None:
            total += self.state.residual
        if (owned := self.state.owned) is not None:
            total[self.state.owned_from : self.state.owned_from + owned.numel()] += owned
        return total

    def keep(self, more: torch.Tensor) -> None:
        """Keep `more`, normalised, beside what is kept already."""
        self._residual().add_(more)

    def lay_aside(self, segments: Sequence[Segment]) -> None:
        """Note what is kept of these, before an exchange that may turn out to be for nothing."""
        for one in segments:
            part = slice(one.offset, one.offset + one.numel)
            # Where an owner keeps something, every rank has a residual, too.
            kept = None if self.state.residual is None else self.state.residual[part].clone()
            if kept is not None and (owned := self._owned_in(one)) is not None:
                kept[owned[1]] += owned[0]
            self.aside.append(Aside(one, kept, None if self.velocity is None else self.velocity[part].clone()))

    def put_back(self, names: Collection[str]) -> None:
        """Of parameters of these names, keep again what was laid aside; nothing is laid aside any more."""
        for one in self.aside:
            if one.segment.name in names:
                if (owned := self._owned_in(one.segment)) is not None:
                    owned[0].zero_()
                if one.kept is not None:
                    self._residual()[one.part] = one.kept
                elif self.state.residual is not None:
                    self.state.residual[one.part] = 0.0
                if self.velocity is not None:
                    self.velocity[one.part] = 0.0 if one.velocity is None else one.velocity
        self.aside.clear()

    def _residual(self) -> torch.Tensor:
        if self.state.residual is None:
            self.state = replace(self.state, residual=torch.zeros(self.spec.numel, device=self.spec.device))
        assert self.state.residual is not None
        return self.state.residual

    def _owned_in(self, segment: Segment) -> tuple[torch.Tensor, slice] | None:
        """What is owned of a segment's sums, and where in the segment that lies; None where it is nothing."""
        if self.state.owned is None:
            return None
        begin = max(segment.offset, self.state.owned_from)
        end = min(segment.offset + segment.numel, self.state.owned_from + self.state.owned.numel())
        if begin >= end:
            return None
        own = self.state.owned[begin - self.state.owned_from : end - self.state.owned_from]
        return own, slice(begin - segment.offset, end - segment.offset)

    @property
    def state_bytes(self) -> int:
        """Memory of the state."""
        tensors = (self.state.residual, self.state.owned, self.velocity, *self.state.extra.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
