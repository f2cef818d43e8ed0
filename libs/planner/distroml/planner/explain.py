"""Why a plan was chosen, what binds it, why not another one, and how the answer changes with batch and links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distroml.planner.plan import PlanRefused
from distroml.planner.prediction import Corrections, Prediction
from distroml.planner.pricing import Pricer
from distroml.planner.profile import MeasuredUnit, ModelProfile
from distroml.planner.reasons import WORDS, against, bytes_text, differences, seconds_text
from distroml.planner.request import Wish
from distroml.planner.search import Choice, Search
from distroml.planner.topology import Topology
from distroml.planner.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """The best plan under a wish, against the chosen one.

    Attributes:
        prediction: of the best plan that is as wished; None where there is none.
        reason: why it was not chosen, or why it cannot be.
    """

    prediction: Prediction | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The step, and the best plan, were one thing different.

    Attributes:
        change: what is different, such as "links at half the rate".
        kept: the chosen plan's prediction then; None where it is not possible.
        why: it is not possible.
        best: the plan that would be chosen then; None where none is possible.
    """

    change: str
    kept: Prediction | None
    why: str = ""
    best: Prediction | None

    def __str__(self) -> str:
        if self.best is None:
            return f"{self.change}: no plan fits"
        if self.kept is None:
            best = f"{self.best.plan} would take {seconds_text(self.best.step_seconds)} a step"
            return f"{self.change}: this plan is not possible ({self.why}); {best}"
        text = f"{self.change}: {seconds_text(self.kept.step_seconds)} a step"
        gain = self.kept.step_seconds / self.best.step_seconds - 1
        return text if gain < 0.01 else f"{text}; {self.best.plan} would be {gain:.0%} faster"


class Explainer:
    """Answers questions about one choice; `choice` was made for the same arguments."""

    def __init__(
        self,
        profile: ModelProfile,
        topology: Topology,
        training: Training,
        global_batch: int,
        choice: Choice,
        *,
        wish: Wish | None = None,
        measured: Sequence[MeasuredUnit] = (),
        corrections: Corrections | None = None,
    ) -> None:
        self._profile = profile
        self._topology = topology
        self._training = training
        self._batch = global_batch
        self._wish = wish or Wish()
        self._measured = measured
        self._corrections = corrections
        self.choice = choice

    def _pricer(self, topology: Topology, batch: int) -> Pricer:
        return Pricer(
            self._profile, topology, self._training, batch, measured=self._measured, corrections=self._corrections
        )

    def binds(self) -> tuple[str, ...]:
        """What the step and the memory are spent on, largest first."""
        prediction = self.choice.prediction
        pricer = self._pricer(self._topology, self._batch)
        lines: list[str] = []
        for part, value in sorted(prediction.seconds.items(), key=lambda item: -item[1]):
            if value > 0.005 * prediction.step_seconds:
                links = pricer.links(prediction.plan, part)
                what = WORDS[part] + (f" over {links} links" if links else "")
                lines.append(f"{what}: {seconds_text(value)} ({value / prediction.step_seconds:.0%} of the step)")
        share = prediction.peak_bytes_per_rank / prediction.capacity_bytes
        worst = max(prediction.bytes, key=lambda part: prediction.bytes[part])
        lines.append(
            f"memory: {bytes_text(prediction.peak_bytes_per_rank)} ({share:.0%} of what there is), most of it {worst}"
        )
        return tuple(lines)

    def why_not(self, wish: Wish) -> Counterfactual:
        """The best plan under `wish`, and why it was not chosen."""
        try:
            other = Search(self._pricer(self._topology, self._batch), wish, alternatives=False).run().prediction
        except PlanRefused as error:
            return Counterfactual(prediction=None, reason=str(error))
        chosen = self.choice.prediction
        changed = differences(other.plan, chosen.plan)
        reason = f"{against(other, chosen)}; it differs in {changed}" if changed else "it is what was chosen"
        return Counterfactual(prediction=other, reason=reason)

    def sensitivity(self) -> tuple[Sensitivity, ...]:
        """The step at half and twice the batch, and at half and twice the links' rate."""
        cases = [
            (f"a global batch of {batch}", self._topology, batch)
            for batch in (self._batch // 2, self._batch * 2)
            if batch
        ]
        if self._topology.world_size > 1:
            cases += [
                ("links at half the rate", self._topology.scaled(0.5), self._batch),
                ("links at twice the rate", self._topology.scaled(2.0), self._batch),
            ]
        return tuple(self._under(*case) for case in cases)

    def _under(self, change: str, topology: Topology, batch: int) -> Sensitivity:
        pricer = self._pricer(topology, batch)
        kept = pricer.price(self.choice.plan)
        try:
            best = Search(pricer, self._wish, alternatives=False).run().prediction
        except PlanRefused:
            best = None
        if isinstance(kept, Prediction):
            return Sensitivity(change=change, kept=kept, best=best)
        return Sensitivity(change=change, kept=None, why=kept.reason, best=best)


def explain(
    profile: ModelProfile,
    topology: Topology,
    training: Training,
    global_batch: int,
    choice: Choice,
    *,
    wish: Wish | None = None,
    measured: Sequence[MeasuredUnit] = (),
    corrections: Corrections | None = None,
) -> Explainer:
    """An `Explainer` of `choice`, which `search` made for the same arguments."""
    return Explainer(
        profile, topology, training, global_batch, choice, wish=wish, measured=measured, corrections=corrections
    )
