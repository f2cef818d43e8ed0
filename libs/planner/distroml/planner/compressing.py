"""How gradients are to be compressed, as far as it costs time or memory: which schemes, and what they take here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from distroml.planner.compression import AUTO, parse_spec
from distroml.planner.plan import PlanRefused

NONE = "none"
SHARD_SCHEMES = (NONE, "int8", "int4")

spec_of = lru_cache(maxsize=256)(parse_spec)
"""`parse_spec`, remembered: a search asks for few schemes, very often."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What encoding and decoding one element of gradient took among `ranks` ranks, measured."""

    scheme: str
    ranks: int
    s_per_element: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scheme that may be used. `extra` are the steps to a loss beyond the dense run's, as a share of them."""

    scheme: str
    extra: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Momenta:
    """What an optimizer has exchanged in place of gradients: 1-bit Adam, deep gradient compression.

    Attributes:
        kept_bytes: that a rank keeps of each element beside residuals.
        working_bytes: of each element of a bucket, when its exchange is over.
        first: schemes of the first steps. There is memory for them, too; steps are priced by the one that stays.
        waits: exchanges begin when the whole backward pass is over.
    """

    kept_bytes: int = 0
    working_bytes: int = 0
    first: tuple[str, ...] = ()
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressing:
    """Compression of gradients.

    Attributes:
        candidates: along dp_replicate; of several each plan has the one with the least time to a loss, as the
            adaptive controller would choose, and memory for any of them.
        shard: along dp_shard.
        tried: measurements of encoding and decoding; without one for a scheme it is taken to be as fast as memory.
        slows: share of that time which computing loses: 1 where encoding has no core of its own.
        sync_every: replicas step by themselves, and exchange how far each came after every so many steps; 0: they sum
            gradients in each.
        momenta: what is exchanged in place of gradients; None: gradients are.
    """

    candidates: tuple[Candidate, ...] = (Candidate(NONE),)
    shard: str = NONE
    tried: tuple[Tried, ...] = ()
    slows: float = 1.0
    sync_every: int = 0
    momenta: Momenta | None = None

    def __post_init__(self) -> None:
        if not self.candidates:
            raise PlanRefused(f"compression needs a scheme; write {NONE} for none")
        for one in self.schemes:
            spec_of(one)
        if self.shard not in SHARD_SCHEMES:
            raise PlanRefused(f"compress_shard must be one of {', '.join(SHARD_SCHEMES)}, got {self.shard!r}")
        if not 0 <= self.slows <= 1:
            raise PlanRefused(f"slows is a share from 0 to 1, got {self.slows}")
        if self.sync_every < 0:
            raise PlanRefused(f"sync_every is a number of steps, or 0, got {self.sync_every}")
        if self.sync_every and len(self.candidates) > 1:
            raise PlanRefused("compress=auto chooses by what steps exchange, and with sync_every they exchange nothing")

    @property
    def on(self) -> bool:
        """Whether anything is compressed along dp_replicate."""
        return any(one.scheme != NONE for one in self.candidates)

    @property
    def agrees(self) -> bool:
        """Whether ranks tell one another of each bucket before they exchange it along dp_replicate."""
        return self.on or self.sync_every > 0

    @property
    def schemes(self) -> tuple[str, ...]:
        """All that may hold along dp_replicate in some step."""
        return (*(one.scheme for one in self.candidates), *(self.momenta.first if self.momenta else ()))

    @property
    def whole_only(self) -> str:
        """What it is of these settings that goes with whole copies only; "" where nothing is."""
        if self.sync_every:
            return f"sync_every={self.sync_every}"
        return "an optimizer with an exchange of its own" if self.momenta is not None else ""

    def s_per_element(self, scheme: str, ranks: int) -> float | None:
        """Measured encoding and decoding of an element by `scheme`, among as many ranks as come nearest to `ranks`."""
        found = [one for one in self.tried if one.scheme == scheme]
        return min(found, key=lambda one: abs(one.ranks - ranks)).s_per_element if found else None


NO_COMPRESSION = Compressing()


def compressing(
    wanted: str,
    shard: str = NONE,
    *,
    ladder: Iterable[Candidate] = (),
    tried: Iterable[Tried] = (),
    slows: float = 1.0,
    sync_every: int = 0,
    momenta: Momenta | None = None,
) -> Compressing:
    """What a job asks for: "none", a scheme, or "auto" among the schemes of `ladder`.

    Raises:
        UnknownScheme: `wanted` is none of these.
        PlanRefused: there is nothing to choose from, or no such scheme along dp_shard, or these do not go together.
    """
    auto = wanted.strip().lower() == AUTO
    candidates = tuple(ladder) if auto else (Candidate(parse_spec(wanted).name),)
    return Compressing(
        candidates=candidates,
        shard=shard,
        tried=tuple(tried),
        slows=slows,
        sync_every=sync_every,
        momenta=momenta,
    )
