"""Training metrics for Prometheus. The `job_id` label is for so many jobs at once, and forgotten in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.telemetry.v1.telemetry_pb2 import StepSample
from distroml.observability import names
from distroml.observability.metrics import REGISTRY, CollectorRegistry, counter, gauge, histogram
from distroml.observability.recent import RecentValues
from distroml.telemetry.domain import facts as f
from distroml.telemetry.domain.wire import scheme_kind, wire_way

_STEP_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RECOVERY_BUCKETS_S: Final = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300)
CATEGORIES: Final = tuple(name.removeprefix("FAILURE_CATEGORY_").lower() for name, _ in FailureCategory.items())
UNKNOWN: Final = CATEGORIES[0]
_DROPS: Final = (("sample", ("agent", "queue", "form", "disk")), ("line", ("agent", "queue", "form", "disk", "bound")))


def category_label(category: str) -> str:
    """A kind of failure as a label; one of a newer release is `unspecified`."""
    return category if category in CATEGORIES else UNKNOWN


@dataclass(slots=True)
class _Known:
    """What is remembered of a job: its furthest step, and how long its plan's operations would take at the peak."""

    furthest_step: int = 0
    peak_step_s: float = 0.0


class TrainingMetrics:
    """What `/metrics` says about training and about what telemetry had to drop."""

    def __init__(
        self,
        *,
        max_jobs: int,
        ttl_s: float,
        clock_s: Callable[[], float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._clock_s = clock_s
        self._known: dict[str, _Known] = {}
        job = (names.LABEL_JOB,)
        self.step_seconds = histogram(
            names.TRAIN_STEP_SECONDS, "Seconds of one optimizer step of rank 0.", job, _STEP_BUCKETS_S, registry
        )
        self.loss = gauge(names.TRAIN_LOSS, "Newest training loss.", job, registry)
        self.step = gauge(names.TRAIN_STEP, "Newest optimizer step.", job, registry)
        self.tokens = counter(names.TRAIN_TOKENS, "Tokens trained on, over all ranks.", job, registry)
        self.samples = counter(names.TRAIN_SAMPLES, "Samples trained on, over all ranks.", job, registry)
        self.comm_wait = counter(
            names.TRAIN_COMM_WAIT_SECONDS, "Seconds that rank 0 waited for exchanges of gradients.", job, registry
        )
        self.data_wait = counter(
            names.TRAIN_DATA_WAIT_SECONDS, "Seconds that rank 0 waited for its next samples.", job, registry
        )
        self.useful = counter(
            names.TRAIN_USEFUL_SLOT_SECONDS,
            "Seconds of steps that no earlier generation had done already, times the workers that did them.",
            job,
            registry,
        )
        self.world_size = gauge(names.TRAIN_WORLD_SIZE, "Workers of the newest step.", job, registry)
        self.mfu = gauge(
            names.TRAIN_MFU,
            "Share of the devices' peak that the model's own operations used in the newest step, where it is known: "
            "the script says it as `mfu`, or the plan was made for devices of a known peak.",
            job,
            registry,
        )
        self.started = gauge(
            names.TRAIN_STARTED, "When this process first heard of the job, Unix seconds.", job, registry
        )
        self.last_checkpoint = gauge(
            names.TRAIN_LAST_CHECKPOINT, "When the newest checkpoint was committed, Unix seconds.", job, registry
        )
        self.last_checkpoint_step = gauge(
            names.TRAIN_LAST_CHECKPOINT_STEP, "Step of the newest committed checkpoint.", job, registry
        )
        self.job_failures = counter(names.TRAIN_JOB_FAILURES, "Generations of the job that broke.", job, registry)
        self.failures = counter(
            names.TRAIN_FAILURES, "Generations that broke, by kind of failure.", (names.LABEL_CATEGORY,), registry
        )
        self.wire_bytes = counter(
            names.TRAIN_WIRE_BYTES,
            "Bytes that rank 0 sent for gradients along dp_replicate, and coded along dp_shard, by compression.",
            (names.LABEL_JOB, names.LABEL_AXIS, names.LABEL_SCHEME),
            registry,
        )
        self.scheme_changes = counter(
            names.TRAIN_SCHEME_CHANGES,
            "Changes of a bucket's compression, by the kind that it changed to.",
            (names.LABEL_SCHEME,),
            registry,
        )
        self.recovery_seconds = histogram(
            names.TRAIN_RECOVERY_SECONDS,
            "Seconds from the loss of a worker to the end of the next generation's first step, by kind of failure.",
            (names.LABEL_CATEGORY,),
            _RECOVERY_BUCKETS_S,
            registry,
        )
        self.checkpoints = counter(names.TRAIN_CHECKPOINTS, "Saves by outcome.", (names.LABEL_OUTCOME,), registry)
        self.dropped = counter(
            names.TELEMETRY_DROPPED,
            "Records dropped, by kind, and where: `agent`, or here for a full `queue`, `bound`, `form` or `disk`.",
            (names.LABEL_KIND, names.LABEL_WHERE),
            registry,
        )
        self.skipped_events = counter(
            names.TELEMETRY_SKIPPED_EVENTS, "Public events that this release cannot read.", (), registry
        )
        self.unlabelled = counter(
            names.TELEMETRY_UNLABELLED,
            "Samples and facts that no metric of a job counted, since as many jobs as may have labels are training.",
            (),
            registry,
        )
        self.pending = gauge(names.TELEMETRY_PENDING, "Records waiting to be written.", (), registry)
        self._jobs = RecentValues(
            names.LABEL_JOB,
            (
                *(self.step_seconds, self.loss, self.step, self.tokens, self.samples, self.comm_wait, self.data_wait),
                *(self.useful, self.world_size, self.mfu, self.started, self.last_checkpoint),
                *(self.last_checkpoint_step, self.job_failures, self.wire_bytes),
            ),
            max_values=max_jobs,
            ttl_s=ttl_s,
        )
        # A series that begins at its first count would hide it from `increase`.
        for category in CATEGORIES:
            self.failures.labels(category)
            self.recovery_seconds.labels(category)
        for outcome in ("committed", "failed"):
            self.checkpoints.labels(outcome)
        for kind, places in _DROPS:
            for where in places:
                self.dropped.labels(kind, where)

    def observe_step(self, sample: StepSample) -> None:
        """Take a step of rank 0 into account."""
        job, known = sample.job, self._heard_of(sample.job, sample.at_ms)
        if known is None:
            return
        self.step_seconds.labels(job).observe(sample.step_s)
        self.step.labels(job).set(sample.step)
        self.world_size.labels(job).set(sample.world_size)
        self.tokens.labels(job).inc(sample.tokens)
        self.samples.labels(job).inc(sample.samples)
        self.comm_wait.labels(job).inc(max(0.0, sample.comm_wait_s))
        self.data_wait.labels(job).inc(max(0.0, sample.data_wait_s))
        for way, sent in sample.wire_bytes.items():
            axis, _, scheme = wire_way(way)
            self.wire_bytes.labels(job, axis, scheme_kind(scheme)).inc(sent)
        if sample.HasField("loss"):
            self.loss.labels(job).set(sample.loss)
        if "mfu" in sample.extra:
            self.mfu.labels(job).set(sample.extra["mfu"])
        elif known.peak_step_s and sample.step_s:
            self.mfu.labels(job).set(known.peak_step_s / sample.step_s)
        if sample.step > known.furthest_step:
            known.furthest_step = sample.step
            self.useful.labels(job).inc(sample.step_s * sample.world_size)

    def take(self, job: str, fact: f.MeteredFact) -> None:
        """Take a fact of a job into account."""
        known = self._heard_of(job, fact.at_ms)
        match fact:
            case f.SaveSeen(state="saving") | f.GenerationFormed():
                pass
            case f.SaveSeen(state=outcome):
                self.checkpoints.labels(outcome).inc()
                if outcome == "committed" and known:
                    self.last_checkpoint.labels(job).set(fact.at_ms / 1000)
                    self.last_checkpoint_step.labels(job).set(fact.step)
            case f.SchemeChanged(to_scheme=scheme, buckets=buckets):
                self.scheme_changes.labels(scheme_kind(scheme)).inc(len(buckets))
            case f.GenerationBroken(category=category):
                self.failures.labels(category_label(category)).inc()
                if known:
                    self.job_failures.labels(job).inc()
            case f.PlanSeen(mfu=mfu, step_seconds=step_s):
                if known:
                    known.peak_step_s = mfu * step_s
            case _:
                assert_never(fact)

    def forget_old(self, now_s: float) -> None:
        """Remove labels of jobs not heard of for the ttl."""
        self._jobs.forget(now_s)

    def _heard_of(self, job: str, at_ms: int) -> _Known | None:
        """What is known of a job that may have labels; None, and counted, where it may not."""
        fresh = job not in self._jobs
        if not self._jobs.use(job, self._clock_s()):
            self.unlabelled.inc()
            return None
        if fresh:
            self._known = {name: known for name, known in self._known.items() if name in self._jobs}
            self._known[job] = _Known()
            self.started.labels(job).set(at_ms / 1000)
            self.job_failures.labels(job)
        return self._known[job]
