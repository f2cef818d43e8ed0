"""The training of one generation, from its restore to its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from distroml.runtime.checkpoint import NOTHING_ELSE
from distroml.runtime.compress.optim import CompressedOptimizer
from distroml.runtime.data import DataLoader
from distroml.runtime.data.ranges import after
from distroml.runtime.elastic import Membership, World
from distroml.runtime.link import Link
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.training.adapting import Adapting
from distroml.runtime.training.controlling import adapting_of, kept_by, start
from distroml.runtime.training.evaluation import evaluate
from distroml.runtime.training.fingerprint import fingerprint
from distroml.runtime.training.places import Recorded, place_of
from distroml.runtime.training.planned import Planned
from distroml.runtime.training.recording import SchemeRecord
from distroml.runtime.training.reports import Reporter
from distroml.runtime.training.restoring import restore_agreed
from distroml.runtime.training.saves import Saves
from distroml.runtime.training.settings import Settings, check_last_step, parameter_count
from distroml.runtime.training.source import ModelSource
from distroml.runtime.training.step import StepDone, Stepper
from distroml.runtime.training.storage import Storage
from distroml.runtime.training.trainee import Trainee
from distroml.runtime.training.types import CheckpointsExhausted, FitResult, LossFunction, StepInfo
from distroml.runtime.training.votes import Wish
from distroml.workerlink import CheckpointRef

log = logging.getLogger("distroml.runtime.train")

# How long the last save waits for a catalogue and a store of objects that are away: nothing comes after it.
_FINAL_SAVE_S = 600.0
_DRAIN_SAVE_S = 60.0
# Of the grace a stop gives: the rest is for ending.
_OF_GRACE = 0.7


class Drained(Exception):
    """This generation is left in good order, after a save."""


class StopOrdered(Exception):
    """The job is to end, after a save where one was wanted."""


class Run:
    """One generation on this rank: steps, checkpoints, evaluations, and the orders that end them."""

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
        check_last_step(self.plan, settings.data)
        self.trainee = Trainee(settings, source, membership, world, self.plan, self._sample)
        self.reporter = self._speaker()
        self.restored: CheckpointRef | None = None
        self.trained = False
        self._saves = Saves(link, storage, self.parallel.collectives, self._on_committed, self.trainee.whole)
        self._stepper: Stepper | None = None
        self._recorded = recorded
        self._adapting: Adapting | None = None

    @property
    def parallel(self) -> ParallelModel:
        """The model as this generation's plan spreads it."""
        return self.trainee.parallel

    @property
    def module(self) -> nn.Module:
        """The model of this generation."""
        return self.parallel.module

    @property
    def step(self) -> int:
        """The last step that was made."""
        return self.trainee.step

    def _speaker(self) -> Reporter:
        settings = self.settings
        return Reporter(
            self._link,
            self.world,
            self.parallel,
            total_steps=settings.total_steps,
            log_every_s=settings.log_every_s,
        )

    @property
    def committed_step(self) -> int | None:
        """The step of the newest checkpoint that this rank knows to be committed."""
        newest = self._saves.newest or self.restored
        return newest.step if newest is not None else None

    # ---- the start

    def restore(self) -> None:
        """Load what this generation starts from, on every rank the same. Collective.

        Raises:
            CheckpointsExhausted: only damaged checkpoints are left, and the training may not start again.
        """
        self._link.progress(step=0, phase="restore")
        world, settings, trainee = self.world, self.settings, self.trainee
        wanted = world.restore if self._storage.catalogue is None else self._storage.catalogue.latest()
        found, more = restore_agreed(
            wanted=wanted,
            storage=self._storage,
            link=self._link,
            collectives=self.parallel.collectives,
            fresh=trainee.fresh,
            whole=trainee.whole or NOTHING_ELSE,
            own=self.parallel.keeping.own_place,
            check=self._membership.check,
        )
        kept = ""
        if found.ref is None:
            self._begin(found.damaged)
        else:
            kept = trainee.go_on(more)
            self.restored = found.ref
            log.info("restored the checkpoint of step %d in %.2f s", found.ref.step, found.seconds)
        if isinstance(trainee.optimizer, CompressedOptimizer) and settings.grad_clip is not None:
            raise ValueError(
                f"grad_clip is of summed gradients, and with {type(trainee.optimizer).__name__} there are none; "
                "leave it out (DGC clips each rank's own by its clip=)"
            )
        self.parallel.exchange_for(trainee.optimizer, settings.compression, self.step)
        self._stepper = Stepper(
            parallel=self.parallel,
            optimizer=trainee.optimizer,
            scheduler=trainee.scheduler,
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

    def _begin(self, damaged: int) -> None:
        """Begin with the first weights: there is no checkpoint, or all are `damaged`."""
        if damaged:
            self._start_again(damaged)
        before = self.parallel
        self.trainee.begin(overwritten=bool(damaged))
        if self.parallel is not before:
            # It tells of the parameters, and would go on to tell of those that were overwritten.
            self.reporter = self._speaker()

    def _start_again(self, damaged: int) -> None:
        if self.settings.without_checkpoint == "fail" or not self._source.can_reset:
            hint = "" if self._source.can_reset else "; pass model_factory= to Trainer to be able to start again"
            raise CheckpointsExhausted(f"all {damaged} checkpoint(s) of this job are damaged, none is left{hint}")
        log.error("ALL %d CHECKPOINT(S) ARE DAMAGED: training starts again from step 0", damaged)

    # ---- the steps

    def steps(self) -> Iterator[StepInfo]:
        """Make the steps that are left, evaluate, and save the end; yields every step made. Collective.

        Raises:
            PeerLost, GenerationLeft, Drained: the training goes on in another generation.
            StopOrdered: the job is to end here.
        """
        assert self._stepper is not None
        settings, trainee = self.settings, self.trainee
        self.module.train()
        while trainee.step < settings.total_steps:
            self._membership.check()
            number = trainee.step + 1
            if self._adapting is not None:
                self._adapting.begin(number)
            last = number == settings.total_steps
            taken, done = self._stepper.run(number, trainee.position, last=last)
            if self._adapting is not None:
                self._adapting.end(number)
            trainee.step, trainee.position = number, after(taken)
            save_due = settings.checkpoint_every is not None and self._due(settings.checkpoint_every, number, last)
            eval_due = settings.eval_data is not None and self._eval_due(number, last)
            if save_due or eval_due or last or self.reporter.last is None:
                done += self._stepper.settle()
            wishes = self._note(done)
            if not last and wishes & (Wish.DRAIN | Wish.STOP | Wish.STOP_WITH_CHECKPOINT):
                self._obey(wishes)
            if eval_due and settings.eval_data is not None:
                trainee.evaluated = self.evaluate(settings.eval_data, None)
                if self.world.is_main:
                    log.info("step %d: held-out loss %.4f", number, trainee.evaluated["loss"])
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

    def _begin_save(self, why: str, patience_s: float = 0.0) -> None:
        if self.reporter.last is not None:
            self.reporter.record(self.reporter.last, why)
        state = self.trainee.captured(kept_by(self._adapting, self.parallel))
        self._saves.begin(state, step=self.step, patience_s=patience_s)

    def _save_and_wait(self, why: str, timeout_s: float) -> bool:
        """A save that the caller cannot do without, begun once the one before it is through."""
        step = self.step
        # Others than us are waited for, and not beyond the limit: that is no hang.
        self._link.progress(step=step, phase="idle")
        if self._saves.begun is not None and self._saves.begun != step and self._saves.busy:
            self._saves.wait(self._saves.begun, timeout_s, self._membership.check)
        if self._saves.begun != step:
            self._link.progress(step=step, phase="save")
            self.parallel.average_buffers()
            self._begin_save(why, timeout_s)
            self._link.progress(step=step, phase="idle")
        committed = self._saves.wait(step, timeout_s, self._membership.check)
        # Nothing where it was committed just now.
        if why_not := "" if committed else self._saves.give_up(step):
            known = self.committed_step
            log.error(
                "THE STATE AFTER STEP %d IS NOT SAVED: %s. %s",
                *(step, why_not),
                "No checkpoint is committed" if known is None else f"The last one committed is of step {known}",
            )
        return not why_not

    def _save_end(self) -> None:
        if self.restored is not None and self.restored.step == self.step:
            return
        committed = self._save_and_wait("end", _FINAL_SAVE_S)
        if committed and self.world.is_main:
            log.info("step %d: the last checkpoint is committed", self.step)
        elif not committed:
            log.error(
                "this model is gone when the script ends: let it write the model elsewhere, or end with an error, and "
                "the job tries again from its last checkpoint (`FitResult.committed_step` tells a script)"
            )

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
            eval=self.trainee.evaluated,
            rank=self.world.rank,
            world_size=self.world.world_size,
            generation=self.world.generation,
            restored_step=self.restored.step if self.restored else None,
            committed_step=self.committed_step,
            fingerprint=fingerprint(0.0, self.parallel.local_tensors()),
        )

    def abandon(self, *, failed: bool) -> None:
        """Let go of hooks, saves and buffers; with `failed`, record the last step first."""
        if failed and self._stepper is not None and (last := self.reporter.last) is not None:
            # On CUDA the step after it has moved parameters already, by sums that may be none.
            self.reporter.record(last, "failure", moved_on=self._stepper.moved != last.step)
        self._saves.close()
        self.parallel.close()
