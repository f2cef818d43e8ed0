"""The training of one generation, from its restore to its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distroml.runtime.checkpoint import NOTHING_ELSE, Whole, capture
from distroml.runtime.compress.optim import CompressedOptimizer
from distroml.runtime.data import DataLoader, DataPosition
from distroml.runtime.data.ranges import after
from distroml.runtime.elastic import Membership, World
from distroml.runtime.link import Link
from distroml.runtime.parallel import ParallelModel, spread
from distroml.runtime.training.adapting import Adapting
from distroml.runtime.training.apart import rejoin, separate
from distroml.runtime.training.controlling import adapting_of, kept_by, start
from distroml.runtime.training.evaluation import evaluate
from distroml.runtime.training.fingerprint import fingerprint
from distroml.runtime.training.places import Recorded, place_of
from distroml.runtime.training.planned import Planned
from distroml.runtime.training.recording import SchemeRecord
from distroml.runtime.training.reports import Reporter
from distroml.runtime.training.restoring import restore_agreed
from distroml.runtime.training.saves import Saves
from distroml.runtime.training.settings import Settings, check_last_step, fresh_optimizer, parameter_count
from distroml.runtime.training.source import ModelSource
from distroml.runtime.training.step import StepDone, Stepper
from distroml.runtime.training.storage import Storage
from distroml.runtime.training.types import CheckpointsExhausted, FitResult, LossFunction, StepInfo
from distroml.runtime.training.votes import Wish
from distroml.workerlink import CheckpointRef

log = logging.getLogger("distroml.runtime.train")

_FINAL_SAVE_S = 180.0
_DRAIN_SAVE_S = 60.0
# Of the grace a stop gives: the rest is for ending.
_OF_GRACE = 0.7


class Drained(Exception):
    """This generation is left in good order, after a save."""


class StopOrdered(Exception):
    """The job is to end, after a save where one was wanted."""


class Run:
    """One generation's model, optimizer and place in the data, on this rank."""

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        link: Link,
        membership: Membership,
        storage: Storage,
        world: World,
        recorded: Recorded,
    ) -> None:
        """`recorded` are the changes of compression schemes of all generations so far, and grows."""
        self.settings = settings
        self.world = world
        self._source = source
        self._link = link
        self._membership = membership
        self._storage = storage
        self._sample = settings.data.sample()
        self._planned = Planned(link, world, settings, source, self._sample, storage.store)
        self.plan = self._planned.plan
        self._divides = self.plan.world_size > self.plan.dp_replicate
        check_last_step(self.plan, settings.data)
        self.parallel = self._spread()
        self.reporter = Reporter(
            link, world, self.parallel, total_steps=settings.total_steps, log_every_s=settings.log_every_s
        )
        self.step = 0
        self.position = DataPosition()
        self.restored: CheckpointRef | None = None
        self.evaluated: dict[str, float] | None = None
        self.trained = False
        self._optimizer: Optimizer | None = None
        self._scheduler: LRScheduler | None = None
        self._saves = Saves(link, storage, self.parallel.collectives, self._on_committed, self._whole())
        self._stepper: Stepper | None = None
        self._recorded = recorded
        self._adapting: Adapting | None = None

    @property
    def module(self) -> nn.Module:
        """The model of this generation."""
        return self.parallel.module

    # ---- the start

    def _spread(self) -> ParallelModel:
        """The model by this generation's plan. One that is divided is made anew, so that another plan can follow."""
        model, source = self._source.build() if self._divides else (self._source.module, None)
        with self._membership.connecting():
            return spread(
                model,
                self.plan,
                self.world,
                loss=self.settings.loss,
                sample=self._sample,
                seed=self.settings.seed,
                precision=self.settings.precision,
                compiled=self.settings.compiled,
                source=source,
                compression=self.settings.compression,
            )

    def restore(self) -> None:
        """Load what this generation starts from, on every rank the same. Collective.

        Raises:
            CheckpointsExhausted: only damaged checkpoints are left, and the training may not start again.
        """
        self._link.progress(step=0, phase="restore")
        world, settings = self.world, self.settings
        wanted = world.restore if self._storage.catalogue is None else self._storage.catalogue.latest()
        found, more = restore_agreed(
            wanted=wanted,
            storage=self._storage,
            link=self._link,
            collectives=self.parallel.collectives,
            fresh=self._fresh,
            whole=self._whole() or NOTHING_ELSE,
            own=self.parallel.keeping.own_place,
        )
        kept = ""
        if found.ref is None:
            if found.damaged:
                self._start_again(found.damaged)
            self._first_weights(overwritten=bool(found.damaged))
        else:
            place: dict[str, Any] = more["trainer"]
            self.step, self.position = int(place["step"]), DataPosition(int(place["epoch"]), int(place["index"]))
            self.evaluated = place["evaluated"]
            kept = place.get("control", "")
            self.restored = found.ref
            if self.parallel.keeping.keep(more, self.step) and self.parallel.meetings is not None:
                assert self._optimizer is not None
                rejoin(self._optimizer, self.parallel.part.held, more, self.parallel.keeping.own_place)
            if self._scheduler is not None:
                self._scheduler.load_state_dict(more["lr_scheduler"])
            log.info("restored the checkpoint of step %d in %.2f s", found.ref.step, found.seconds)
        assert self._optimizer is not None
        if isinstance(self._optimizer, CompressedOptimizer):
            if settings.grad_clip is not None:
                raise ValueError(
                    f"grad_clip is of summed gradients, and with {type(self._optimizer).__name__} there are none; "
                    "leave it out (DGC clips each rank's own by its clip=)"
                )
            self.parallel.exchange_for(self._optimizer, settings.compression, self.step)
        self._stepper = Stepper(
            parallel=self.parallel,
            optimizer=self._optimizer,
            scheduler=self._scheduler,
            data=settings.data,
            world=world,
            grad_clip=settings.grad_clip,
            stop_at_non_finite=settings.non_finite == "fail",
            wishes=self._wishes,
        )
        self._planned.tell(parameter_count(self._source.blank()), self.parallel.sums)
        if settings.compression.adapts:
            record = SchemeRecord(self._storage, world.generation, place_of(self.plan, world.rank))
            self._adapting = adapting_of(self.parallel, self._link, world, self._recorded, record)
        if self._adapting is not None:
            start(self._adapting, self.parallel, self._sample, self.plan.grad_accum_steps, self.step, kept)

    def _whole(self) -> Whole | None:
        """The model of which this rank holds a part; None where every rank saves the same."""
        if self._divides:
            return self.parallel.part.whole
        compression = self.settings.compression
        apart = (compression.on and compression.residuals == "exact") or compression.outer is not None
        return Whole.of(self.module) if apart else None

    def _first_weights(self, *, overwritten: bool) -> None:
        if not self._divides:
            self._source.reset()
        elif overwritten:
            self.parallel.close()
            self.parallel = self._spread()
        self._fresh()
        if not self._divides:
            self.parallel.synchronise()
        if self.parallel.meetings is not None:
            self.parallel.meetings.resume(0)

    def _start_again(self, damaged: int) -> None:
        if self.settings.without_checkpoint == "fail" or not self._source.can_reset:
            hint = "" if self._source.can_reset else "; pass model_factory= to Trainer to be able to start again"
            raise CheckpointsExhausted(f"all {damaged} checkpoint(s) of this job are damaged, none is left{hint}")
        log.error("ALL %d CHECKPOINT(S) ARE DAMAGED: training starts again from step 0", damaged)

    def _fresh(self) -> tuple[nn.Module, Optimizer, dict[str, Any]]:
        """A new optimizer and scheduler, and the further state that a checkpoint fills."""
        self._optimizer = fresh_optimizer(self.settings, self.parallel.parameters())
        self._scheduler = self.settings.lr_scheduler(self._optimizer) if self.settings.lr_scheduler else None
        return self.parallel.part.state, self._optimizer, {**self._more(), **self.parallel.keeping.blank()}

    def _more(self) -> dict[str, Any]:
        more: dict[str, Any] = {
            "trainer": {
                "step": self.step,
                "epoch": self.position.epoch,
                "index": self.position.index,
                "evaluated": self.evaluated,
                "control": kept_by(self._adapting, self.parallel),
            }
        }
        if self._scheduler is not None:
            more["lr_scheduler"] = self._scheduler.state_dict()
        return more

    # ---- the steps

    def steps(self) -> Iterator[StepInfo]:
        """Make the steps that are left, evaluate, and save the end; yields every step made. Collective.

        Raises:
            PeerLost, GenerationLeft, Drained: the training goes on in another generation.
            StopOrdered: the job is to end here.
        """
        assert self._stepper is not None
        settings = self.settings
        self.module.train()
        while self.step < settings.total_steps:
            self._membership.check()
            number = self.step + 1
            if self._adapting is not None:
                self._adapting.begin(number)
            last = number == settings.total_steps
            taken, done = self._stepper.run(number, self.position, last=last)
            if self._adapting is not None:
                self._adapting.end(number)
            self.step, self.position = number, after(taken)
            save_due = settings.checkpoint_every is not None and self._due(settings.checkpoint_every, number, last)
            eval_due = settings.eval_data is not None and self._eval_due(number, last)
            if save_due or eval_due or last or self.reporter.last is None:
                done += self._stepper.settle()
            wishes = self._note(done)
            if not last and wishes & (Wish.DRAIN | Wish.STOP | Wish.STOP_WITH_CHECKPOINT):
                self._obey(wishes)
            if eval_due and settings.eval_data is not None:
                self.evaluated = self.evaluate(settings.eval_data, None)
                if self.world.is_main:
                    log.info("step %d: held-out loss %.4f", number, self.evaluated["loss"])
            if save_due and not last:
                self._checkpoint(busy=bool(wishes & Wish.BUSY))
            for step in done:
                yield step.info
        if settings.checkpoint_every is not None:
            self._save_end()
        self.trained = True
        self._link.progress(step=self.step, phase="idle")

    @staticmethod
    def _due(every: int | None, number: int, last: bool) -> bool:
        return last or (every is not None and number % every == 0)

    def _eval_due(self, number: int, last: bool) -> bool:
        every, outer = self.settings.eval_every, self.settings.compression.outer
        if last or every is None or outer is None:
            return self._due(every, number, last)
        # Between meetings there is no one model: an evaluation that falls there is made at the next.
        return outer.due(number) and number // every > (number - outer.every) // every

    def _note(self, done: list[StepDone]) -> Wish:
        wishes = Wish.NONE
        for step in done:
            wishes |= step.wishes
            first = self.reporter.last is None
            self.reporter.step(step.info)
            self._planned.step(step.info, last=step.info.step == self.settings.total_steps)
            if self._adapting is not None:
                self._adapting.note(step.info.step_s, step.info.loss)
            if first:
                self.reporter.record(step.info, "generation")
            for callback in self.settings.callbacks:
                callback(step.info)
        return wishes

    def _wishes(self) -> Wish:
        wishes = Wish.NONE
        if self._membership.draining:
            wishes |= Wish.DRAIN
        if (stop := self._membership.stop) is not None:
            wishes |= Wish.STOP_WITH_CHECKPOINT if stop.checkpoint else Wish.STOP
        if self._saves.busy:
            wishes |= Wish.BUSY
        return wishes

    def _obey(self, wishes: Wish) -> None:
        assert self._stepper is not None
        self._note(self._stepper.settle())
        stop = self._membership.stop
        if wishes & (Wish.DRAIN | Wish.STOP_WITH_CHECKPOINT):
            limit_s = _DRAIN_SAVE_S if stop is None else min(_DRAIN_SAVE_S, _OF_GRACE * stop.grace_s)
            self._save_and_wait("drain" if stop is None else "stop", limit_s)
        if wishes & (Wish.STOP | Wish.STOP_WITH_CHECKPOINT):
            raise StopOrdered(f"told to stop after step {self.step}")
        raise Drained(f"told to leave after step {self.step}")

    # ---- checkpoints

    def _checkpoint(self, *, busy: bool) -> None:
        # Statistics are averaged at fixed steps, also where the save itself is passed over: bits stay the same.
        self.parallel.average_buffers()
        if busy:
            if self.world.is_main:
                log.warning("no checkpoint at step %d: the one before is still being written", self.step)
            return
        self._begin_save("checkpoint")

    def _begin_save(self, why: str) -> None:
        assert self._optimizer is not None
        if self.reporter.last is not None:
            self.reporter.record(self.reporter.last, why)
        whole = self._whole() or NOTHING_ELSE
        more = {**self._more(), **self.parallel.keeping.kept()}
        state = capture(self.parallel.part.state, self._optimizer, whole=whole, **more)
        if self.parallel.meetings is not None:
            separate(state, self.parallel, main=self.world.is_main)
        self._saves.begin(state, step=self.step)

    def _save_and_wait(self, why: str, timeout_s: float) -> bool:
        """A save that the caller cannot do without, begun once the one before it is through."""
        self._link.progress(step=self.step, phase="save")
        step = self.step
        if self._saves.begun is not None and self._saves.begun != step and self._saves.busy:
            self._saves.wait(self._saves.begun, timeout_s, self._membership.check)
        if self._saves.begun != step:
            self.parallel.average_buffers()
            self._begin_save(why)
        committed = self._saves.wait(step, timeout_s, self._membership.check)
        if not committed:
            log.error("the checkpoint of step %d did not come about: %s", step, self._saves.why_failed(step))
        return committed

    def _save_end(self) -> None:
        if self.restored is not None and self.restored.step == self.step:
            return
        if self._save_and_wait("end", _FINAL_SAVE_S) and self.world.is_main:
            log.info("step %d: the last checkpoint is committed", self.step)

    def _on_committed(self, ref: CheckpointRef) -> None:
        self._source.settled()
        if self.world.is_main:
            log.info("step %d: checkpoint committed", ref.step)

    # ---- the rest

    def evaluate(self, data: DataLoader[Any], metrics: Mapping[str, LossFunction[Any]] | None) -> dict[str, float]:
        """Means over the whole of `data`, spread over the ranks. Collective."""
        self._link.progress(step=self.step, phase="eval")
        self.parallel.average_buffers()
        terms = {"loss": self.settings.loss, **(metrics or {})}
        result = evaluate(self.parallel, data, terms, self.settings.seed)
        self._link.progress(step=self.step, phase="train")
        return result

    def result(self) -> FitResult:
        """How the training ended."""
        last = self.reporter.last
        return FitResult(
            step=self.step,
            loss=last.loss if last else None,
            eval=self.evaluated,
            rank=self.world.rank,
            world_size=self.world.world_size,
            generation=self.world.generation,
            restored_step=self.restored.step if self.restored else None,
            fingerprint=fingerprint(0.0, self.parallel.local_tensors()),
        )

    def abandon(self, *, failed: bool) -> None:
        """Let go of hooks, saves and buffers; with `failed`, record the last step first."""
        if failed and self._stepper is not None and (last := self.reporter.last) is not None:
            # On CUDA the step after it has moved parameters already, by sums that may be none.
            self.reporter.record(last, "failure", moved_on=self._stepper.moved != last.step)
        self._saves.close()
        self.parallel.close()
