"""What each scheme costs in steps, and what its residual and direction look like while it is healthy.

One table, in the order of the ladder: from the scheme that loses nothing to the one that loses most.

Low rank is what was measured: on the example GPT (4.9 million parameters, 512 tokens a step, learning rate 5e-4, one
seed) plain training comes to its loss in 418 steps, torch's PowerSGD of rank 16, 4 and 1 in 437, 555 and 969
(`benchmarks/time_to_loss.py --curves`). Rank 8 and 2 lie on straight lines between these, in the logarithm of the rank.
What rounding costs (bf16, int8, int4), and where guards stand, are estimates in the order of published runs. Another
model and batch loses otherwise; what `auto` promises in time to a loss is as good as these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rung:
    """One scheme of the ladder.

    Attributes:
        scheme: as a user writes it.
        extra: steps to a loss beyond the dense run's, as a share of them.
        ratio: residual over gradient above which its error feedback counts as running away.
        cosine: to the dense sum, below which its direction counts as lost.
    """

    scheme: str
    extra: float
    ratio: float
    cosine: float


LADDER: tuple[Rung, ...] = (
    Rung("none", 0.0, 1.0, 0.0),
    Rung("bf16", 0.001, 1.0, 0.9),
    Rung("int8", 0.005, 1.0, 0.9),
    Rung("int4", 0.02, 2.0, 0.5),
    Rung("powersgd:16+int8", 0.05, 12.0, 0.1),
    Rung("powersgd:8+int8", 0.19, 16.0, 0.1),
    Rung("powersgd:4+int8", 0.33, 20.0, 0.05),
    Rung("powersgd:2+int8", 0.82, 24.0, 0.05),
    Rung("powersgd:1+int8", 1.32, 32.0, 0.02),
)

RUNGS: dict[str, int] = {rung.scheme: index for index, rung in enumerate(LADDER)}


def rung(scheme: str) -> int:
    """The place of a scheme on the ladder; one that is not on it counts as the most lossy."""
    return RUNGS.get(scheme, len(LADDER) - 1)
