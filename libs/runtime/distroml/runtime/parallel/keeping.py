"""What a checkpoint has of compression, and how a run goes on with it: the same world, another one, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distroml.planner import Plan
from distroml.runtime.checkpoint import ANCHOR, OUTER, OWN, RESIDUALS
from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.compression import Residuals
from distroml.runtime.parallel.gradients import local_of
from distroml.runtime.parallel.meetings import PARAMETERS, Meetings
from distroml.runtime.parallel.residuals import (
    Named,
    blank_residuals,
    folded_residuals,
    keep_folded,
    keep_own,
    own_state,
)


class Keeping:
    """What one rank keeps beside the model and the optimizer.

    Args:
        exchange: whose residuals are kept; None: there is no compression, and what an earlier run with it kept is owed
            to the next step's gradients.
        meetings: of replicas that step by themselves, if they do.
        parameters: this rank's trainable ones, by name.
        plan: of the model.
        rank: of the world.
        residuals: see `Compression`.
    """

    def __init__(
        self,
        exchange: CompressedExchange | None,
        meetings: Meetings | None,
        parameters: Named,
        *,
        plan: Plan,
        rank: int,
        residuals: Residuals,
    ) -> None:
        self._exchange = exchange
        self._meetings = meetings
        self._parameters = parameters
        self._plan = str(plan)
        self._keeps_own = residuals == "exact" or meetings is not None
        self._owed: dict[str, torch.Tensor] = {}
        self.own_place = (OWN, str(rank))
        """Where a checkpoint has what only this rank kept."""

    def kept(self) -> dict[str, Any]:
        """What a checkpoint has of compression, beside the model's and the optimizer's state. Collective."""
        if self._exchange is None:
            return {RESIDUALS: dict(self._owed)} if self._owed else {}
        folded = folded_residuals(self._exchange, self._parameters)
        kept: dict[str, Any] = {RESIDUALS: folded} if folded else {}
        if self._keeps_own:
            kept[OWN] = {self.own_place[1]: own_state(self._exchange, self._plan)}
        if self._meetings is not None:
            kept[OUTER] = self._meetings.velocities()
            if self._meetings.between:
                kept[ANCHOR] = self._meetings.anchors()
        return kept

    def blank(self) -> dict[str, Any]:
        """What a load fills of `kept`, as far as the checkpoint has it."""
        blank: dict[str, Any] = {RESIDUALS: blank_residuals(self._parameters)}
        if self._meetings is not None:
            for key in (OUTER, ANCHOR):
                blank[key] = {name: torch.empty_like(one) for name, one in self._meetings.velocities().items()}
        return blank

    def keep(self, saved: Mapping[str, Any], step: int = 0) -> bool:
        """Go on with what a load found of `kept`: of this world exactly where that was asked for, else of any.

        Args:
            saved: what was loaded.
            step: after which it was saved.

        Returns:
            Whether it was of this world, and this rank goes on exactly.
        """
        if self._exchange is None:
            self._owed = dict(saved.get(RESIDUALS, {}))
            return False
        own: Mapping[str, Any] = saved.get(OWN) or {}
        mine: Mapping[str, Any] = own.get(self.own_place[1]) or {}
        exact = self._keeps_own and keep_own(self._exchange, self._plan, mine)
        if exact:
            # What was kept is of the scheme that the checkpoint had; a run may have been started again with another.
            self._exchange.go_on(step + 1)
        else:
            keep_folded(self._exchange, self._parameters, saved.get(RESIDUALS, {}))
        if self._meetings is not None:
            own_parameters = mine.get(PARAMETERS) if exact else None
            self._meetings.resume(step, saved.get(OUTER), saved.get(ANCHOR), own_parameters)
        return exact

    def feed_back(self, terms: torch.Tensor) -> None:
        """Add to the summed gradients what an earlier run with compression still owed them; once, before the norm.

        Parameters that no rank reached have no gradient any more, and are owed it until they have one.

        Args:
            terms: global count of this step's loss terms.
        """
        still: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters if self._owed else ():
            if (owed := self._owed.get(clean(name))) is None:
                continue
            if parameter.grad is None:
                still[clean(name)] = owed
            else:
                own = local_of(parameter.grad)
                own.add_((local_of(owed) * terms).to(own.dtype))
        self._owed = still
