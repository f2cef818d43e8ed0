"""What a run says while it trains: samples and recorded steps to the platform, plain lines to the log."""

from __future__ import annotations

import logging
import time

from distroml.observability import names
from distroml.runtime.elastic import World
from distroml.runtime.link import Link
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.spans import WorkerSpans
from distroml.runtime.training.controlling import Advisor, wire_bytes
from distroml.runtime.training.fingerprint import fingerprint
from distroml.runtime.training.places import place_of
from distroml.runtime.training.types import StepInfo
from distroml.workerlink import StepRecorded, StepSample

log = logging.getLogger("distroml.runtime.train")

# The lowest rank may be the one that died: the next one with the same parameters says the same.
_FAILURE_REPORTERS = 2


class Reporter:
    """Speaks for one rank of one generation. `spent_s` is the time its calls took on the training thread."""

    def __init__(
        self, link: Link, world: World, parallel: ParallelModel, *, total_steps: int, log_every_s: float
    ) -> None:
        self._link = link
        self._world = world
        self._parallel = parallel
        self._total_steps = total_steps
        self._log_every_s = log_every_s
        self._logged_at = float("-inf")
        self._logged_count = 0
        self._count = 0
        self._spans = WorkerSpans(link, world)
        self._advisor = Advisor(parallel, link, world)
        self.last: StepInfo | None = None
        self.spent_s = 0.0

    def step(self, info: StepInfo) -> None:
        """A step is done."""
        started = time.perf_counter()
        self._link.sample(
            StepSample(
                generation=self._world.generation,
                step=info.step,
                total_steps=self._total_steps,
                at_ms=time.time_ns() // 1_000_000,
                step_s=info.step_s,
                data_wait_s=info.data_wait_s,
                comm_wait_s=info.comm_wait_s,
                loss=info.loss,
                grad_norm=info.grad_norm,
                samples=info.samples,
                tokens=info.count,
                learning_rate=info.learning_rate,
                wire_bytes=wire_bytes(self._parallel),
            )
        )
        self._link.progress(step=info.step, phase="train")
        if self.last is None or self._spans.every_step:
            name = names.SPAN_FIRST_STEP if self.last is None else names.SPAN_STEP
            began_ns = time.time_ns() - int(1e9 * info.step_s)
            self._spans.end(self._spans.begin(name, step=info.step, start_ns=began_ns))
        self.last = info
        self._count += info.count
        self._advisor.step(info)
        if self._world.is_main:
            self._line(info, started)
        self.spent_s += time.perf_counter() - started

    def _line(self, info: StepInfo, now: float) -> None:
        first = self._logged_at == float("-inf")
        if not first and now - self._logged_at < self._log_every_s and info.step != self._total_steps:
            return
        rate = "" if first else f"  {(self._count - self._logged_count) / (now - self._logged_at):,.0f} terms/s"
        self._logged_at, self._logged_count = now, self._count
        hint = f"  ({self._advisor.hint})" if self._advisor.hint else ""
        log.info(
            "step %d/%d  loss %.4f  %.0f ms%s%s", info.step, self._total_steps, info.loss, 1e3 * info.step_s, rate, hint
        )

    @property
    def _stands_in(self) -> bool:
        """Whether this rank's parameters are rank 0's, and it is the first one beside that."""
        plan, rank = self._parallel.plan, self._world.rank
        if self._parallel.meetings is not None or place_of(plan, rank) != place_of(plan, 0):
            return False
        return plan.coordinate(rank)["dp_replicate"] < _FAILURE_REPORTERS

    def record(self, info: StepInfo, why: str, *, moved_on: bool = False) -> None:
        """Rank 0 records a step as an event; without a fingerprint where parameters have `moved_on` since."""
        if not self._world.is_main and not (why == "failure" and self._stands_in):
            return
        started = time.perf_counter()
        print_ = "" if moved_on else fingerprint(info.loss, self._parallel.local_tensors())
        self._link.send(
            StepRecorded(
                generation=self._world.generation,
                step=info.step,
                sample_from=info.sample_from,
                sample_to=info.sample_to,
                epoch=info.epoch,
                loss=info.loss,
                fingerprint=print_,
                why=why,
                at_ms=time.time_ns() // 1_000_000,
            )
        )
        self.spent_s += time.perf_counter() - started
