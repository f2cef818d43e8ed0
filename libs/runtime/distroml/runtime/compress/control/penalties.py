"""What each scheme costs in steps, and what its residual and direction look like while it is healthy.

One table, in the order of the ladder: from the scheme that loses nothing to the one that loses most.

Steps are what was measured on the example GPT of 4.9 million parameters (`benchmarks/time_to_loss.py --curves`), as
the mean of two batches, since what a scheme costs depends on that. With 512 tokens a step (learning rate 5e-4) plain
training comes to its loss in 403 steps, mean of three seeds, and with the ladder's schemes in 404, 407, 418, 441, 458
and 522; with the last two in 713 and 978 of one seed, which takes 418 plain. With 2,048 tokens (1e-3) it takes 399,
and low rank two to four times as many more as there: 399 with `int4` (one seed, 397 plain), 451 and about 870 with
torch's PowerSGD of rank 16 and 4, about 565 with `powersgd:8+int8`, the last two by a line through their last ten
evaluations. Of rank 2 and 1 we take three times as many more.
Where guards stand is an estimate in the order of published runs. Another model and batch loses otherwise: what `auto`
promises in time to a loss is as good as these numbers.
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
    Rung("powersgd:16+int8", 0.11, 12.0, 0.1),
    Rung("powersgd:8+int8", 0.28, 16.0, 0.1),
    Rung("powersgd:4+int8", 0.74, 20.0, 0.05),
    Rung("powersgd:2+int8", 1.42, 24.0, 0.05),
    Rung("powersgd:1+int8", 2.68, 32.0, 0.02),
)

RUNGS: dict[str, int] = {rung.scheme: index for index, rung in enumerate(LADDER)}


def rung(scheme: str) -> int:
    """The place of a scheme on the ladder; one that is not on it counts as the most lossy."""
    return RUNGS.get(scheme, len(LADDER) - 1)
