"""What a measured step and peak say about the prediction: factors by part, which the next search uses.

A part that was measured by itself gets its own factor. What remains of the step and the peak is laid on the other
parts in equal proportion. Factors of several runs are joined with more weight on later ones, and kept within bounds:
a single stalled step must not teach that plans are a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distroml.planner.prediction import BYTES, SECONDS, Corrections, Prediction

_LEAST, _MOST = 0.2, 5.0
# A run's weight against all that was known before it; the first one counts whole.
_WEIGHT = 0.5
# A prediction within this of the measurement stands.
AGREEMENT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a run took.

    Attributes:
        step_seconds: median of its steps, 0 where nobody measured it.
        peak_bytes: most memory of any rank, 0 where nobody measured it.
        seconds: parts that were measured by themselves, by the names in `SECONDS`.
        bytes: parts that were measured by themselves, by the names in `BYTES`.
    """

    step_seconds: float = 0.0
    peak_bytes: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    bytes: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        for kind, values, known in (("seconds", self.seconds, SECONDS), ("bytes", self.bytes, BYTES)):
            if unknown := sorted(set(values) - set(known)):
                raise ValueError(f"measured {kind} of {', '.join(unknown)}: known parts are {', '.join(known)}")
        for name, value in {"step_seconds": self.step_seconds, "peak_bytes": self.peak_bytes, **self.seconds}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"measured {name} must be a number of at least 0, got {value}")


def contradicts(prediction: Prediction, measured: Measurement) -> str:
    """In which way the measurement contradicts the prediction, or "" where it bears it out."""
    told: list[str] = []
    for name, expected, real in (
        ("a step takes", prediction.step_seconds, measured.step_seconds),
        ("the peak of memory is", prediction.peak_bytes_per_rank, measured.peak_bytes),
    ):
        if real and expected and abs(real / expected - 1) > AGREEMENT:
            told.append(f"{name} {real / expected:.2f} times what was predicted")
    return ", ".join(told)


def learn(prediction: Prediction, measured: Measurement, known: Corrections | None = None) -> Corrections:
    """`known` (with which the prediction was made), corrected by a run."""
    known = known or Corrections()
    return Corrections(
        seconds=_joined(known.seconds, prediction.seconds, measured.seconds, measured.step_seconds),
        bytes=_joined(known.bytes, prediction.bytes, measured.bytes, measured.peak_bytes),
    )


def _joined(
    known: Mapping[str, float], predicted: Mapping[str, float], parts: Mapping[str, float], total: float
) -> dict[str, float]:
    factors = {part: real / predicted[part] for part, real in parts.items() if predicted.get(part) and real}
    rest = sum(value for part, value in predicted.items() if part not in factors)
    left = total - sum(parts[part] for part in factors)
    if total and rest > 0 and left > 0:
        factors |= {part: left / rest for part, value in predicted.items() if value and part not in factors}
    # The margin is a share of other parts and follows them.
    factors.pop("margin", None)
    joined = dict(known)
    for part, factor in factors.items():
        # The prediction held the factor known before; the new one stands on top of it. Joined as ratios.
        weight = _WEIGHT if part in known else 1.0
        joined[part] = min(max(known.get(part, 1.0) * factor**weight, _LEAST), _MOST)
    return joined
