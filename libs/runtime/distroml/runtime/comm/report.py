"""What communication costs on live ranks, and up to which bandwidth each compression scheme pays. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DENSE = "none"


@dataclass(frozen=True, slots=True)
class LinkRate:
    """One collective at one level of the links, in groups of `ranks`, for messages of `bytes`."""

    level: str
    collective: str
    ranks: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SumTime:
    """A sum of `bytes` by one algorithm; `sent_bytes` of one rank, by level; `picked` where it is the choice."""

    algorithm: str
    bytes: int
    seconds: float
    sent_bytes: dict[str, int]
    picked: bool


@dataclass(frozen=True, slots=True)
class SchemeCost:
    """One exchange of a gradient buffer by a scheme.

    Attributes:
        scheme: by name.
        sent_bytes: that one rank sends, scales, indices and all phases counted.
        work_s: encoding and decoding, without any exchange; the slowest rank's.
        exchange_s: all of it over the live links.
        rounds: exchanges that wait for one another.
    """

    scheme: str
    sent_bytes: int
    work_s: float
    exchange_s: float
    rounds: int

    def seconds(self, bytes_per_s: float) -> float:
        """What it takes where a rank sends `bytes_per_s`, latency apart."""
        return self.work_s + self.sent_bytes / bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class CommReport:
    """What was measured.

    Attributes:
        world_size: ranks.
        hosts: on which they ran, by rank.
        backend: of torch's process group.
        buffer_bytes: of the gradients that the schemes exchanged.
        links: of each level.
        sums: by size and algorithm.
        schemes: the dense sum first.
    """

    world_size: int
    hosts: tuple[str, ...]
    backend: str
    buffer_bytes: int
    links: tuple[LinkRate, ...]
    sums: tuple[SumTime, ...]
    schemes: tuple[SchemeCost, ...]

    @property
    def dense(self) -> SchemeCost:
        """The plain sum, which all are compared with."""
        return next(one for one in self.schemes if one.scheme == DENSE)

    def link_bytes_per_s(self) -> float:
        """What a rank gets to send while the buffer is summed plainly, here."""
        return self.dense.sent_bytes / self.dense.exchange_s

    def break_even(self, cost: SchemeCost) -> float:
        """Bytes per second below which a scheme is faster than the plain sum: 0 never, infinite always."""
        saved, more_s = self.dense.sent_bytes - cost.sent_bytes, cost.work_s - self.dense.work_s
        if saved <= 0:
            return 0.0
        return saved / more_s if more_s > 0 else math.inf

    def fastest(self, bytes_per_s: float) -> SchemeCost:
        """The scheme that takes least at a bandwidth; of equals the one that comes first."""
        return min(self.schemes, key=lambda cost: cost.seconds(bytes_per_s))

    def ranges(self, bandwidths: Sequence[float]) -> dict[str, tuple[float, float]]:
        """Of each scheme that is the fastest anywhere in the rising `bandwidths`: the least and the most of these.

        Times are straight lines in seconds per byte, so that where each is fastest is one interval.
        """
        found: dict[str, tuple[float, float]] = {}
        for bandwidth in bandwidths:
            name = self.fastest(bandwidth).scheme
            found[name] = (found.get(name, (bandwidth, 0.0))[0], bandwidth)
        return found
