"""What an exchange keeps of one bucket: its scheme, the scheme's state, and how the last exchange went."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from distroml.runtime.compress import Layout, Piece, Scheme, State, succeeded
from distroml.runtime.parallel.buckets import BucketSpec
from distroml.runtime.typed import floats, norm_of


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one bucket's exchange.

    Attributes:
        wire_s: from handing in its messages to their answers.
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
        residual_norm: the same of what they kept before this exchange.
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


@dataclass(slots=True)
class Buffer:
    """One bucket's part of an exchange. It belongs to the exchange's thread between a step's begin and end.

    Attributes:
        number: of the bucket.
        spec: where gradients lie in it.
        scheme: that the next exchange goes by, unless a change is due.
        world_size: ranks that take part.
        layout: what schemes know of the bucket.
        state: of the scheme.
        changes: schemes to come, by the step from which they hold.
        took: by the last exchange, on this rank.
        least: of all ranks, each number by itself; 0 where ranks were not asked.
        measured: of the last exchange.
        velocity: this rank's own momentum, where that is exchanged in place of gradients.
    """

    number: int
    spec: BucketSpec
    scheme: Scheme
    world_size: int
    layout: Layout = field(init=False)
    state: State = field(init=False)
    changes: dict[int, Scheme] = field(default_factory=lambda: dict[int, Scheme]())
    took: Took = Took()
    least: Took = Took()
    measured: Measured | None = None
    velocity: torch.Tensor | None = None

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
        if self.state.residual is None:
            self.state = replace(self.state, residual=torch.zeros(self.spec.numel, device=self.spec.device))
        assert self.state.residual is not None
        self.state.residual += more

    @property
    def state_bytes(self) -> int:
        """Memory of the state."""
        tensors = (self.state.residual, self.state.owned, self.velocity, *self.state.extra.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
