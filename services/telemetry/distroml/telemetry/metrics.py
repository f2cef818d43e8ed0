"""Training metrics for Prometheus. The `job` label is kept for the most recent jobs only, and forgotten in time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from distroml.api.telemetry.v1.telemetry_pb2 import StepSample
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RECOVERY_BUCKETS = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300)


class TrainingMetrics:
    """What `/metrics` says about training and about what telemetry had to drop."""

    def __init__(
        self, registry: CollectorRegistry, *, max_jobs: int, ttl_s: float, clock_s: Callable[[], float]
    ) -> None:
        self._max_jobs, self._ttl_s, self._clock_s = max_jobs, ttl_s, clock_s
        self._seen: OrderedDict[str, float] = OrderedDict()
        self.step_seconds = Histogram(
            "distroml_train_step_seconds",
            "Seconds of one optimizer step of the lead rank.",
            ["job"],
            buckets=_STEP_BUCKETS,
            registry=registry,
        )
        self.loss = Gauge("distroml_train_loss", "Newest training loss.", ["job"], registry=registry)
        self.step = Gauge("distroml_train_step", "Newest optimizer step.", ["job"], registry=registry)
        self.tokens = Counter("distroml_train_tokens", "Tokens trained on, global.", ["job"], registry=registry)
        self.samples = Counter("distroml_train_samples", "Samples trained on, global.", ["job"], registry=registry)
        self.recovery_seconds = Histogram(
            "distroml_train_recovery_seconds",
            "Seconds from the loss of a worker to the end of the first step of the next generation.",
            buckets=_RECOVERY_BUCKETS,
            registry=registry,
        )
        self.checkpoints = Counter(
            "distroml_train_checkpoints", "Checkpoints by outcome.", ["outcome"], registry=registry
        )
        self.dropped = Counter(
            "distroml_telemetry_dropped",
            "Records dropped, by kind, and where: `agent`, or here for a full `queue`, a `bound` or their `form`.",
            ["kind", "where"],
            registry=registry,
        )
        self.skipped_events = Gauge(
            "distroml_telemetry_skipped_events", "Public events that this release cannot read.", registry=registry
        )
        self.pending = Gauge("distroml_telemetry_pending_records", "Records waiting to be written.", registry=registry)

    def observe_step(self, sample: StepSample) -> None:
        """Take a step of the lead rank into account."""
        now = self._clock_s()
        self._seen[sample.job] = now
        self._seen.move_to_end(sample.job)
        self.step_seconds.labels(sample.job).observe(sample.step_s)
        self.step.labels(sample.job).set(sample.step)
        self.tokens.labels(sample.job).inc(sample.tokens)
        self.samples.labels(sample.job).inc(sample.samples)
        if sample.HasField("loss"):
            self.loss.labels(sample.job).set(sample.loss)
        self.forget_old(now)

    def forget_old(self, now_s: float) -> None:
        """Remove labels of jobs past the bound or without a sample for the ttl."""
        while self._seen:
            job, seen = next(iter(self._seen.items()))
            if len(self._seen) <= self._max_jobs and now_s - seen <= self._ttl_s:
                return
            del self._seen[job]
            for metric in (self.step_seconds, self.loss, self.step, self.tokens, self.samples):
                metric.remove(job)
