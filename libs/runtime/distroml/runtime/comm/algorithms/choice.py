"""Which algorithm for which size, by what each was measured to take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

# Another than the flat one must gain this much: timings of one sum vary by more than a few percent.
_WORTH_IT = 0.05


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one sum of `bytes`, by algorithm; the slowest rank's."""

    bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """An algorithm for every size.

    Attributes:
        timed: what was measured, by rising size; nothing: flat for all sizes.
        spent_s: what measuring took.
        reused: whether an older measurement of the same machines served.
    """

    timed: tuple[Timed, ...] = ()
    spent_s: float = 0.0
    reused: bool = False

    def pick(self, size_bytes: int) -> str:
        """The name of the algorithm for a tensor of that size: the fastest, or the flat one where little is gained."""
        expected = {name: self.seconds(name, size_bytes) for name in self.timed[0].seconds} if self.timed else {}
        best = min(expected, key=lambda name: expected[name], default="flat")
        return best if "flat" not in expected or expected[best] < (1 - _WORTH_IT) * expected["flat"] else "flat"

    def seconds(self, name: str, size_bytes: int) -> float:
        """What a sum of that size is expected to take: on straight lines between and beyond what was measured.

        Beyond it never less than the largest took: where noise made that one fast, larger ones would take no time.
        """
        points = [(timed.bytes, timed.seconds[name]) for timed in self.timed]
        if size_bytes <= points[0][0]:
            return points[0][1]  # latency: smaller ones hardly take less
        if len(points) == 1:
            return points[0][1] * size_bytes / points[0][0]
        (low, low_s), (high, high_s) = next(
            (pair for pair in pairwise(points) if size_bytes <= pair[1][0]), (points[-2], points[-1])
        )
        expected_s = low_s + (size_bytes - low) * (high_s - low_s) / (high - low)
        return max(expected_s, high_s) if size_bytes > high else expected_s

    def told(self) -> Mapping[str, object]:
        """For events and logs: the choice in words, the sizes with the algorithm of each, and what they rest on."""
        return {
            "choice": str(self),
            "sizes": [{"bytes": timed.bytes, "pick": self.pick(timed.bytes), **timed.seconds} for timed in self.timed],
            "spent_s": round(self.spent_s, 3),
            "reused": self.reused,
        }

    def __str__(self) -> str:
        runs: list[tuple[str, int, int]] = []
        for timed in self.timed:
            name = self.pick(timed.bytes)
            if runs and runs[-1][0] == name:
                runs[-1] = (name, runs[-1][1], timed.bytes)
            else:
                runs.append((name, timed.bytes, timed.bytes))
        if not runs:
            return "flat"
        if len(runs) == 1:
            return f"{runs[0][0]} for all sizes"
        return ", ".join(
            f"{name} to {_kib(high)}" if number < len(runs) - 1 else f"{name} from {_kib(low)}"
            for number, (name, low, high) in enumerate(runs)
        )


def _kib(size_bytes: int) -> str:
    return f"{size_bytes / 1024:g} KiB" if size_bytes < 1 << 20 else f"{size_bytes / (1 << 20):g} MiB"
