"""What one generation trains on this rank: model, optimizer, place in the data; and what a checkpoint has of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distroml.runtime.checkpoint import NOTHING_ELSE, Whole, capture
from distroml.runtime.checkpoint.planner import State
from distroml.runtime.data import DataPosition
from distroml.runtime.elastic import Membership, World
from distroml.runtime.parallel import ParallelModel, Plan, spread
from distroml.runtime.training.apart import rejoin, separate
from distroml.runtime.training.settings import Settings, fresh_optimizer
from distroml.runtime.training.source import ModelSource


class Trainee:
    """The state of a training on one rank, spread by the generation's plan. Collective to make; raises `PeerLost`.

    Attributes:
        divides: whether the plan gives each rank a part of the model only.
        parallel: the model.
        scheduler: of the learning rate, if there is one.
        step: the last one that was made.
        position: in the data, after it.
        evaluated: means of the last evaluation.
    """

    def __init__(
        self, settings: Settings, source: ModelSource, membership: Membership, world: World, plan: Plan, sample: Any
    ) -> None:
        self._settings = settings
        self._source = source
        self._membership = membership
        self._world = world
        self._plan = plan
        self._sample = sample
        self.divides = plan.world_size > plan.dp_replicate
        self.parallel = self._spread()
        self._optimizer: Optimizer | None = None
        self.scheduler: LRScheduler | None = None
        self.step = 0
        self.position = DataPosition()
        self.evaluated: dict[str, float] | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The one that `fresh` made last."""
        assert self._optimizer is not None
        return self._optimizer

    @property
    def whole(self) -> Whole | None:
        """The model of which this rank holds a part; None where every rank saves the same."""
        if self.divides:
            return self.parallel.part.whole
        compression = self._settings.compression
        apart = (compression.on and compression.residuals == "exact") or compression.outer is not None
        return Whole.of(self.parallel.module) if apart else None

    def _spread(self) -> ParallelModel:
        """The model by this generation's plan. One that is divided is made anew, so that another plan can follow."""
        settings = self._settings
        model, source = self._source.build() if self.divides else (self._source.module, None)
        with self._membership.connecting():
            return spread(
                model,
                self._plan,
                self._world,
                loss=settings.loss,
                sample=self._sample,
                seed=settings.seed,
                precision=settings.precision,
                compiled=settings.compiled,
                source=source,
                compression=settings.compression,
            )

    # ---- how it begins

    def fresh(self) -> tuple[nn.Module, Optimizer, dict[str, Any]]:
        """A new optimizer and scheduler, and the further state that a checkpoint fills."""
        self._optimizer = fresh_optimizer(self._settings, self.parallel.parameters())
        self.scheduler = self._settings.lr_scheduler(self._optimizer) if self._settings.lr_scheduler else None
        return self.parallel.part.state, self._optimizer, {**self._more(""), **self.parallel.keeping.blank()}

    def begin(self, *, overwritten: bool) -> None:
        """Take the first weights; where a load may have `overwritten` a divided model, by a new `parallel`. Collective.

        Raises:
            PeerLost: another rank is gone.
        """
        if not self.divides:
            self._source.reset()
        elif overwritten:
            self.parallel.close()
            self.parallel = self._spread()
        self.fresh()
        if not self.divides:
            self.parallel.synchronise()
        if self.parallel.meetings is not None:
            self.parallel.meetings.resume(0)

    def go_on(self, loaded: Mapping[str, Any]) -> str:
        """Go on from a checkpoint that was loaded into what `fresh` gave.

        Returns:
            What the controller of compression kept; empty for nothing.
        """
        place: Mapping[str, Any] = loaded["trainer"]
        self.step, self.position = int(place["step"]), DataPosition(int(place["epoch"]), int(place["index"]))
        self.evaluated = place["evaluated"]
        keeping = self.parallel.keeping
        if keeping.keep(loaded, self.step) and self.parallel.meetings is not None:
            rejoin(self.optimizer, self.parallel.part.held, loaded, keeping.own_place)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(loaded["lr_scheduler"])
        return place.get("control", "")

    # ---- what a checkpoint has

    def captured(self, control: str) -> State:
        """All that a checkpoint has of it, live, and what the controller of compression keeps. Collective.

        Raises:
            PeerLost: another rank is gone.
        """
        more = {**self._more(control), **self.parallel.keeping.kept()}
        state = capture(self.parallel.part.state, self.optimizer, whole=self.whole or NOTHING_ELSE, **more)
        if self.parallel.meetings is not None:
            separate(state, self.parallel, main=self._world.is_main)
        return state

    def _more(self, control: str) -> dict[str, Any]:
        more: dict[str, Any] = {
            "trainer": {
                "step": self.step,
                "epoch": self.position.epoch,
                "index": self.position.index,
                "evaluated": self.evaluated,
                "control": control,
            }
        }
        if self.scheduler is not None:
            more["lr_scheduler"] = self.scheduler.state_dict()
        return more
