"""Trainer: trains a model through failures, on however many workers there are."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Literal, NoReturn, TypeVar

import torch
from torch import nn

from distroml.observability import names
from distroml.runtime.comm.backends import lost
from distroml.runtime.compress.optim import OuterNesterov
from distroml.runtime.data import DataLoader
from distroml.runtime.elastic import Membership, NoGeneration, PeerLost, World, is_communication_error
from distroml.runtime.elastic.world import number_of
from distroml.runtime.link import AgentLink, process_link
from distroml.runtime.parallel import Compression, LossFunction, Plan, Precision, Residuals
from distroml.runtime.parallel.idle import warn_of_idle
from distroml.runtime.spans import WorkerSpans
from distroml.runtime.training.places import Recorded
from distroml.runtime.training.run import Drained, Run, StopOrdered
from distroml.runtime.training.settings import MakeOptimizer, MakeScheduler, Settings, total_steps_of
from distroml.runtime.training.source import ModelSource
from distroml.runtime.training.storage import open_storage
from distroml.runtime.training.types import (
    Callback,
    CheckpointsExhausted,
    FitResult,
    NonFiniteError,
    StepInfo,
)
from distroml.workerlink import Stopping, WorkerFailed, environment

log = logging.getLogger("distroml.runtime.train")

Batch = TypeVar("Batch")
T = TypeVar("T")

_FLUSH_S = 2.0
_MAX_TEXT = 20_000


def _speak() -> None:
    """Show the runtime's own lines where the script set up no logging."""
    logger = logging.getLogger("distroml.runtime")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _category(error: BaseException) -> str:
    match error:
        case NonFiniteError():
            return "non_finite"
        case CheckpointsExhausted():
            return "corruption"
        case NoGeneration():
            return "rendezvous_timeout"
        case MemoryError() | torch.OutOfMemoryError():
            return "out_of_memory"
        case RuntimeError() if "can't allocate memory" in str(error):
            # So torch says it of the CPU's memory, for which it has no class.
            return "out_of_memory"
        case _:
            return "exception"


def _sync_every(given: int | None) -> int | None:
    """As `_compression`, of how often replicas meet; None where they sum gradients at every step."""
    asked = number_of(os.environ, environment.SYNC_EVERY) or None
    if given is not None and asked is not None and given != asked and os.environ.get(environment.RANK, "0") == "0":
        log.warning("the job asks for sync_every=%d and the script for %d: the script's is used", asked, given)
    return given if given is not None else asked


def _compression(given: str | None) -> str:
    """The script's own scheme, else the job's; the script knows best, and whoever asked for another is told."""
    asked = os.environ.get(environment.COMPRESS) or ""
    if given is not None and asked and given != asked and os.environ.get(environment.RANK, "0") == "0":
        log.warning("the job asks for compress=%s and the script for %s: the script's is used", asked, given)
    return given if given is not None else asked or "none"


class Trainer(Generic[Batch]):
    """Trains a model on all workers of the job; survives the loss of any of them within its process.

    The loss function returns a **sum** over a microbatch and the count of its terms; gradients are summed over
    microbatches and ranks and divided by the global count, so the result does not depend on how many workers share
    a step. At the same world size a training that was broken off and restored has the same bits as one that was not.

    Args:
        model: the model; every rank starts from rank 0's weights. Or
        model_factory: makes the model; called with torch's generator seeded by `seed`. It allows starting again
            from step 0 without keeping a copy of the first weights.
        optimizer: from the trainable parameters to an optimizer; called anew in every generation.
        loss: `(model, batch) -> (sum of losses, count)`.
        data: the training data.
        steps: optimizer steps of the whole training. Or
        epochs: passes over the data.
        lr_scheduler: from the optimizer to a scheduler that is stepped once per optimizer step.
        checkpoint_every: save after every so many steps, and at the end; None: never.
        checkpoint_dir: folder for checkpoints of a run that no agent started; default `.distroml/runs/<script>`.
        eval_data: held-out data, evaluated at the end and every `eval_every` steps.
        grad_clip: largest norm of the normalised gradient.
        plan: how to spread the model over the workers: None: whole copies; what is known of a plan, such as
            "dp_shard=2,tp=2"; or "auto": measured and searched, which may choose another plan from one job to the next.
        compress: the scheme by which replicas sum their gradients: "none", "bf16", "fp16", "int8", "int4", "sign",
            "topk:RATIO", "randomk:RATIO" or "powersgd:RANK". What it loses is kept and told later. "auto" measures and
            chooses for each bucket. None: what the job says, else "none".
        compress_shard: the same for the sums of sharded gradients, along dp_shard: "none", "int8" or "int4". Rounding
            is right in the mean, and nothing is kept.
        compress_gather: the code as which sharded parameters are gathered for a pass: "none" or "int8", rounded to the
            nearest. Shards, and with them checkpoints, stay exact.
        residuals: what checkpoints have of what compression keeps: "folded", the sum over replicas, which any world
            size takes over; or "exact", each rank's own beside it, so that the same world size goes on bit for bit.
        sync_every: replicas step by themselves and meet after every so many steps: how far each came is averaged, by
            the scheme of `compress`, and an outer optimizer moves all of them on (local SGD, DiLoCo). They also meet
            at the end. `grad_clip` is of each replica's own gradient, `StepInfo.grad_norm` the root of their mean
            square, and an evaluation that falls between two meetings is made at the next. A checkpoint there has the
            model that a meeting would have made, for another world size; the same one goes on as if nothing had been.
            Only for plans that replicate. None: what the job says, else gradients are summed at every step.
        outer_lr: of the outer optimizer, 0.7 as in DiLoCo; 1 with no momentum averages parameters.
        outer_momentum: of the outer optimizer, Nesterov's.
        precision: "bf16" computes forward and backward passes in bfloat16 where torch's autocast says so; parameters,
            gradients and optimizer state stay as they are.
        compiled: compile the model's blocks.
        seed: of first weights and of every random number drawn in a step.
        callbacks: called on every rank after each step (on CUDA one step late).
        non_finite: "fail" ends the job at a loss or gradient that is no finite number; "ignore" goes on.
        without_checkpoint: what to do where all checkpoints turn out damaged: "restart" from step 0, or "fail".
        device: "cpu", "cuda" or None for a GPU where there is one.
        backend: "nccl", "gloo" or "mpi"; None: the job's, mpi where mpirun alone started the script, else nccl on GPUs
            and gloo on CPUs.
        log_every_s: seconds between two progress lines of rank 0.

    Raises:
        ValueError: contradictory or impossible arguments; says which.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        model_factory: Callable[[], nn.Module] | None = None,
        optimizer: MakeOptimizer,
        loss: LossFunction[Batch],
        data: DataLoader[Batch],
        steps: int | None = None,
        epochs: int | None = None,
        lr_scheduler: MakeScheduler | None = None,
        checkpoint_every: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        eval_data: DataLoader[Batch] | None = None,
        eval_every: int | None = None,
        grad_clip: float | None = None,
        plan: str | Plan | None = None,
        compress: str | None = None,
        compress_shard: str = "none",
        compress_gather: str = "none",
        residuals: Residuals = "folded",
        sync_every: int | None = None,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        precision: Precision = "fp32",
        compiled: bool = False,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        non_finite: Literal["fail", "ignore"] = "fail",
        without_checkpoint: Literal["restart", "fail"] = "restart",
        device: str | None = None,
        backend: str | None = None,
        log_every_s: float = 5.0,
    ) -> None:
        _speak()
        compress = _compression(compress)
        sync_every = _sync_every(sync_every)
        outer = OuterNesterov(sync_every, outer_lr, outer_momentum) if sync_every is not None else None
        self._settings = Settings(
            optimizer=optimizer,
            loss=loss,
            data=data,
            total_steps=total_steps_of(data, steps, epochs),
            lr_scheduler=lr_scheduler,
            checkpoint_every=checkpoint_every,
            checkpoint_dir=checkpoint_dir,
            eval_data=eval_data,
            eval_every=eval_every,
            grad_clip=grad_clip,
            plan=plan,
            compression=Compression(compress, residuals, compress_shard, compress_gather, outer),
            precision=precision,
            compiled=compiled,
            seed=seed,
            callbacks=tuple(callbacks),
            non_finite=non_finite,
            without_checkpoint=without_checkpoint,
            log_every_s=log_every_s,
        )
        self._link = process_link()
        self._link.progress(step=0, phase="setup")
        self._membership = Membership(self._link, os.environ, device=device, backend=backend)
        self._source = ModelSource(model, model_factory, seed)
        self._storage = open_storage(
            os.environ, attached=self._link.attached, wanted=checkpoint_every is not None, folder=checkpoint_dir
        )
        self._run: Run | None = None
        self._fitting = False
        self._evaluations: list[dict[str, float]] = []
        self._asked = 0
        self._recorded: Recorded = {}
        self._warned: set[str] = set()

    @property
    def model(self) -> nn.Module:
        """The model of the current generation. Under plans that only replicate it is one object over all of them."""
        return self._run.module if self._run is not None else self._source.module

    @property
    def world(self) -> World | None:
        """This process's place in the current generation, once there is one."""
        return self._run.world if self._run is not None else self._membership.world

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0 of the current generation, which speaks for all."""
        world = self.world
        return world is not None and world.is_main

    @property
    def telemetry_s(self) -> float:
        """Seconds spent on telemetry in this generation: its calls on the training thread, and its own threads' CPU."""
        threads_s = self._link.cpu_s() if isinstance(self._link, AgentLink) else 0.0
        return threads_s + (self._run.reporter.spent_s if self._run is not None else 0.0)

    def fit(self) -> FitResult:
        """Train to the end; returns on every rank, after the last checkpoint is committed.

        A store of objects or a catalogue that is away then is waited for, ten minutes at most; after that the training
        returns all the same, and says by an error in its log and by `committed_step` of the result what is saved.

        When a worker is lost, the others stay in their processes, wait for the next generation, load the last
        committed checkpoint and go on. On a stop order this raises `SystemExit(0)` after the current step.

        Raises:
            SystemExit: told to stop.
            NonFiniteError, CheckpointsExhausted, NoGeneration: as their names say.
            Exception: whatever the user's own functions raise, after it was reported.
        """
        self._fitting = True
        result = self._elastic(lambda run: run.result())
        self._link.flush(_FLUSH_S)
        return result

    def steps(self) -> Iterator[StepInfo]:
        """`fit()`, one step at a time: yields every step that was made here. It must be iterated to its end.

        A generation that follows a failure starts again from the last checkpoint: step numbers then go back.
        """
        self._fitting = True
        while True:
            try:
                run = self._run or self._enter()
                if not run.trained:
                    yield from run.steps()
                return
            except Exception as error:
                self._recover(error)

    def evaluate(
        self, data: DataLoader[Batch] | None = None, metrics: Mapping[str, LossFunction[Batch]] | None = None
    ) -> dict[str, float]:
        """Means over the whole of `data` (default: `eval_data`): "loss", and each of `metrics`, by name.

        Every rank must call it, and gets the same numbers; it survives failures as `fit` does.
        """
        chosen = data or self._settings.eval_data
        if chosen is None:
            raise ValueError("there is nothing to evaluate on: pass data=, or eval_data= to Trainer")
        number = self._asked
        self._asked += 1

        def measure(run: Run) -> dict[str, float]:
            # A rank that came later repeats the script from its start: what the others know is not measured again.
            if number >= len(self._evaluations):
                self._evaluations.append(run.evaluate(chosen, metrics))
            return self._evaluations[number]

        return self._elastic(measure)

    def full_parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter of the whole model on the CPU, whatever plan divides it; every rank must call it."""
        return self._elastic(lambda run: dict(run.parallel.full_tensors()))

    def close(self) -> None:
        """End the process group in good order; called for you when the script ends."""
        run, self._run = self._run, None
        if run is not None:
            run.abandon(failed=False)
        self._membership.close()
        self._link.flush(_FLUSH_S)

    def _elastic(self, action: Callable[[Run], T]) -> T:
        """Do `action` in the current generation, or in whichever follows it when that one breaks."""
        while True:
            try:
                run = self._run or self._enter()
                if self._fitting and not run.trained:
                    for _ in run.steps():
                        pass
                return action(run)
            except Exception as error:
                self._recover(error)

    def _recover(self, error: Exception) -> None:
        """Make ready for the next generation where `error` means that there is one; else end, saying why."""
        if not isinstance(error, Drained | StopOrdered) and not is_communication_error(error) and (why := lost()):
            # What was made of numbers that were no sums fails in any way: it says nothing about the user's program.
            log.warning("%s; what came of its sums is not believed: %s: %s", why, type(error).__name__, error)
            error = PeerLost(why)
        if isinstance(error, Drained) and self._membership.reforms:
            self._leave("")
        elif isinstance(error, Drained):
            self._stop("the next generation is for fresh processes")
        elif isinstance(error, StopOrdered):
            self._stop()
        elif not is_communication_error(error):
            self._fail(error)
        elif self._membership.stop is not None:
            self._stop()
        elif not self._link.attached:
            log.error("lost another rank, and no agent is there to form a new generation: %s", error)
            self._fail(error)
        elif not self._membership.reforms:
            log.error("lost another rank, and MPI forms no other world in the same processes: %s", error)
            self._fail(error)
        else:
            self._leave(str(error) or type(error).__name__)

    def _enter(self) -> Run:
        world = self._membership.enter()
        run = Run(self._settings, self._source, self._link, self._membership, self._storage, world, self._recorded)
        self._run = run
        warn_of_idle(run.plan, self._settings.compression, world, self._warned)
        spans = WorkerSpans(self._link, world)
        spans.end(spans.begin(names.SPAN_SET_UP, start_ns=world.known_ns))
        restoring = spans.begin(names.SPAN_RESTORE)
        run.restore()
        spans.end(restoring)
        known = run.parallel.collectives.gather(self._evaluations)
        self._evaluations = max(known, key=len)
        return run

    def _leave(self, error: str) -> None:
        run, self._run = self._run, None
        if error:
            self._membership.cut()
        if run is not None:
            run.abandon(failed=bool(error))
        self._membership.leave(error)

    def _stop(self, why: str = "") -> NoReturn:
        run, self._run = self._run, None
        step = run.step if run is not None else 0
        stop = self._membership.stop
        log.info("stopped after step %d: %s", step, stop.reason if stop is not None else why or "told to")
        if run is not None:
            run.abandon(failed=False)
        self._membership.close()
        self._link.send(Stopping(step=step))
        self._link.flush(_FLUSH_S)
        raise SystemExit(0)

    def _fail(self, error: Exception) -> NoReturn:
        run, self._run = self._run, None
        last = run.reporter.last if run is not None else None
        world = run.world if run is not None else None
        self._link.send(
            WorkerFailed(
                generation=world.generation if world is not None else 0,
                category=_category(error),
                message=f"{type(error).__name__}: {error}"[:_MAX_TEXT],
                traceback="".join(traceback.format_exception(error))[-_MAX_TEXT:],
                last_step=last.step if last is not None else 0,
            )
        )
        self._link.flush(_FLUSH_S)
        if run is not None:
            run.abandon(failed=False)
        self._membership.close(broken=True)
        raise error
