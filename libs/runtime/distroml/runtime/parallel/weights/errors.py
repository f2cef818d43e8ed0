"""What reading and placing weights raises."""

from __future__ import annotations


class WeightsError(Exception):
    """Root of what this package raises.

    WeightsError
    ├── WeightsMismatch    the source does not have what the model needs, or in another shape or dtype
    ├── WeightsRefused     the source is of a kind that cannot be read safely or by slice
    └── CannotRecord       a factory does what cannot be put off; `record` then builds the model for real
    """


class WeightsMismatch(WeightsError):
    """Names, shapes or dtypes differ; `problems` names every difference."""

    def __init__(self, problems: list[str], advice: str) -> None:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        super().__init__(f"the weights do not fit the model: {shown}. {advice}")
        self.problems = problems


class WeightsRefused(WeightsError):
    """The source cannot be read; says why and what to do."""


class CannotRecord(WeightsError):
    """What a factory does that cannot be put off."""
