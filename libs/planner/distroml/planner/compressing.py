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
class Compressing:
    """Compression of gradients.

    Attributes:
        candidates: along dp_replicate; of several each plan has the one with the least time to a loss, as the
            adaptive controller would choose, and memory for any of them.
        shard: along dp_shard.
        tried: measurements of encoding and decoding; without one for a scheme it is taken to be as fast as memory.
        slows: share of that time which computing loses: 1 where encoding has no core of its own.
    """

    candidates: tuple[Candidate, ...] = (Candidate(NONE),)
    shard: str = NONE
    tried: tuple[Tried, ...] = ()
    slows: float = 1.0

    def __post_init__(self) -> None:
        if not self.candidates:
            raise PlanRefused(f"compression needs a scheme; write {NONE} for none")
        for one in self.candidates:
            spec_of(one.scheme)
        if self.shard not in SHARD_SCHEMES:
            raise PlanRefused(f"compress_shard must be one of {', '.join(SHARD_SCHEMES)}, got {self.shard!r}")
        if not 0 <= self.slows <= 1:
            raise PlanRefused(f"slows is a share from 0 to 1, got {self.slows}")

    @property
    def on(self) -> bool:
        """Whether anything is compressed along dp_replicate."""
        return any(one.scheme != NONE for one in self.candidates)

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
) -> Compressing:
    """What a job asks for: "none", a scheme, or "auto" among the schemes of `ladder`.

    Raises:
        UnknownScheme: `wanted` is none of these.
        PlanRefused: there is nothing to choose from, or no such scheme along dp_shard.
    """
    auto = wanted.strip().lower() == AUTO
    candidates = tuple(ladder) if auto else (Candidate(parse_spec(wanted).name),)
    return Compressing(candidates=candidates, shard=shard, tried=tuple(tried), slows=slows)
