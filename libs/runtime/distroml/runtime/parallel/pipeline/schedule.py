"""The order of forward and backward passes over a rank's stages, by torch's own pipeline schedules.

A schedule's own argument is only the number of each microbatch: every stage looks its batch up itself, so that
whatever a batch is, it never crosses a link.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from distroml.runtime.elastic import communication
from distroml.runtime.parallel.pipeline.deferred import Deferred
from distroml.runtime.parallel.pipeline.flow import Flow, Run
from distroml.runtime.parallel.pipeline.graph import Value
from distroml.runtime.parallel.pipeline.stage import StageModule, Task

if TYPE_CHECKING:
    # Older releases of torch lack the name; whoever makes no pipeline trains with those, too.
    from torch.distributed.pipelining import PipelineStageInfo

BeforeForward = Callable[[int, int], None]
_KEPT = 16  # schedules: one for each signature and number of microbatches
_WRAPPED = ("failed to run forward", "Failed to run stage backward")


def check_microbatches(schedule: str, pp: int, microbatches: int) -> None:
    """Refuse a number of microbatches that the schedule cannot order.

    Raises:
        ValueError: names the nearest numbers that work.
    """
    if schedule in ("interleaved", "zero_bubble"):
        rounds = max(1, microbatches // pp)
        if microbatches % rounds:
            lower, upper = microbatches - microbatches % rounds, microbatches + rounds - microbatches % rounds
            raise ValueError(
                f"schedule={schedule} on pp={pp} cannot order {microbatches} microbatches per step; {lower} or {upper} "
                "would work, as would schedule=1f1b with one stage per rank"
            )


def check_schedule(schedule: str, modules: Sequence[nn.Module]) -> None:
    """Refuse compiled modules under a zero-bubble schedule, which computes the gradients of weights later.

    Raises:
        ValueError: a module is compiled; says what works.
    """
    parts = [part for module in modules for part in module.modules()] if schedule == "zero_bubble" else []
    for part in parts:
        # `compile()` leaves its work in a private attribute; `torch.compile` returns a module that holds the other.
        if vars(part).get("_compiled_call_impl") is not None or "_orig_mod" in dict(part.named_children()):
            raise ValueError(
                "schedule=zero_bubble cannot run compiled blocks: their backward pass is one piece; use "
                "schedule=interleaved, or compile=False"
            )


class _Stage(PipelineStage):
    """A stage that tells when its gradients of a step are whole."""

    def __init__(self, passed: Callable[[int], None], module: StageModule, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        self._tell = functools.partial(passed, module.index)

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Torch's end of a stage's passes; where it is sharded, it sums and then calls the other one."""
        super().perform_reduce_grad(grad_scale_factor)
        if self.has_backward and not isinstance(self.submod, FSDPModule):
            self._tell()

    def wait_for_gradient_reduction(self, grad_scale_factor: int) -> None:
        """Torch's end of a sharded stage's sums."""
        super().wait_for_gradient_reduction(grad_scale_factor)
        self._tell()


class Runner:
    """Runs steps on the stages of one rank. Every rank of the group makes the same calls in the same order."""

    def __init__(
        self,
        modules: Sequence[StageModule],
        schedule: str,
        stages: int,
        group: dist.ProcessGroup,
        device: torch.device,
        passed: Callable[[int], None],
    ) -> None:
        """`passed` is called with each stage's index when its last backward pass of a step is done."""
        self._passed = passed
        self._modules = {module.index: module for module in modules}
        self._schedule: str = schedule
        self._stages = stages
        self._group = group
        self._device = device
        self._ready: dict[Hashable, tuple[Any, list[PipelineStage]]] = {}
        self._deferred = {module.index: Deferred() for module in modules} if schedule == "zero_bubble" else {}
        for index, deferred in self._deferred.items():
            deferred.attach(self._modules[index])
        self._runs: Sequence[Run] = ()
        self._flow: Flow | None = None
        self._before: BeforeForward | None = None

    def run(
        self, key: Hashable, flow: Flow, runs: Sequence[Run], *, backward: bool, before: BeforeForward | None = None
    ) -> None:
        """Every microbatch's forward pass through all stages, and its backward pass where wanted.

        Args:
            key: equal keys have equal flows.
            flow: of every microbatch.
            runs: one for each microbatch; on the last stage it returns a loss of shape (1,).
            backward: accumulate gradients of the sum of the losses.
            before: called with microbatch and stage before each forward pass of a stage on this rank.

        Raises:
            PeerLost: another rank of the pipeline is gone.
            Whatever a stage raised, unchanged.
        """
        schedule, stages = self._prepared((key, len(runs), backward), flow, len(runs), backward)
        self._runs, self._flow, self._before = runs, flow, before
        numbers = torch.arange(len(runs))
        first = (numbers,) if 0 in self._modules else ()
        target = numbers if self._stages - 1 in self._modules else None
        try:
            with communication(), _unwrapped():
                if backward:
                    schedule.step(*first, target=target, losses=[], return_outputs=False)
                else:
                    with torch.no_grad(), _gradients_kept(self._modules.values()):
                        schedule.eval(*first, target=target)
        finally:
            self._runs, self._flow, self._before = (), None, None
            for stage in stages:
                stage.clear_runtime_states()

    def _prepared(
        self, key: Hashable, flow: Flow, microbatches: int, backward: bool
    ) -> tuple[Any, list[PipelineStage]]:
        ready = self._ready.pop(key, None)
        if ready is None:
            ready = self._make(flow, microbatches, backward)
            while len(self._ready) >= _KEPT:
                self._ready.pop(next(iter(self._ready)))
        self._ready[key] = ready
        return ready

    def _make(self, flow: Flow, microbatches: int, backward: bool) -> tuple[Any, list[PipelineStage]]:
        stages = [self._stage(module, flow) for _, module in sorted(self._modules.items())]
        options: dict[str, Any] = {"loss_fn": _given_loss, "scale_grads": False}
        if len(stages) == 1 and (not backward or self._schedule in ("gpipe", "1f1b")):
            # With fewer microbatches than stages the two orders are one, and torch's 1F1B refuses.
            fill = not backward or self._schedule == "gpipe" or microbatches < self._stages
            one = ScheduleGPipe if fill else Schedule1F1B
            return one(stages[0], microbatches, **options), stages
        check_microbatches(self._schedule, self._group.size(), microbatches)
        several = ScheduleInterleavedZeroBubble if self._schedule == "zero_bubble" else ScheduleInterleaved1F1B
        return several(cast("Any", stages), microbatches, **options), stages

    def _stage(self, module: StageModule, flow: Flow) -> PipelineStage:
        part = flow.stages[module.index]
        number, loss = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        deferred = self._deferred.get(module.index)
        stage = _Stage(
            self._passed,
            module,
            module.index,
            self._stages,
            self._device,
            input_args=tuple(map(_example, part.receives)) if module.index else number,
            output_args=loss if module.is_last else tuple(map(_example, part.sends)),
            group=self._group,
            dw_builder=deferred.take if deferred is not None else None,
        )

        @contextmanager
        def forward(info: PipelineStageInfo) -> Generator[None]:
            if self._flow is not None:
                module.load(Task(self._runs[info.microbatch_index], self._flow))
            if self._before is not None:
                self._before(info.microbatch_index, module.index)
            yield

        stage.register_forward_context(forward)
        return stage


def _given_loss(loss: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    return loss


def _example(value: Value) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta", requires_grad=value.trained)


@contextmanager
def _gradients_kept(modules: Iterable[nn.Module]) -> Generator[None]:
    """Give back the gradients that torch throws away when it prepares sharded stages for a new kind of pass."""
    kept = [(parameter, parameter.grad) for module in modules for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def _unwrapped() -> Generator[None]:
    """Raise what a stage raised, out of the RuntimeError with all arguments that torch wraps around it."""
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is not None and any(sign in str(error) for sign in _WRAPPED):
            raise error.__cause__ from None
        raise
