"""Training metrics for Prometheus. The `job` label is kept for the most recent jobs only, and forgotten in time."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable

from distroml.api.telemetry.v1.telemetry_pb2 import StepSample
from distroml.observability import names
from distroml.observability.metrics import REGISTRY, CollectorRegistry, counter, gauge, histogram
from distroml.telemetry.domain.wire import SCHEME_KINDS, WIRE_AXES, scheme_kind, wire_way

_STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RECOVERY_BUCKETS_S = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300)


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
        self._max_jobs, self._ttl_s, self._clock_s = max_jobs, ttl_s, clock_s
        self._seen: OrderedDict[str, float] = OrderedDict()
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
        self.wire_bytes = counter(
            names.TRAIN_WIRE_BYTES,
            "Bytes that rank 0 sent, by axis of the mesh and kind of compression.",
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
            "Seconds from the loss of a worker to the end of the first step of the next generation.",
            (),
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
        self.pending = gauge(names.TELEMETRY_PENDING, "Records waiting to be written.", (), registry)

    def observe_step(self, sample: StepSample) -> None:
        """Take a step of rank 0 into account."""
        now = self._clock_s()
        self._seen[sample.job] = now
        self._seen.move_to_end(sample.job)
        self.step_seconds.labels(sample.job).observe(sample.step_s)
        self.step.labels(sample.job).set(sample.step)
        self.tokens.labels(sample.job).inc(sample.tokens)
        self.samples.labels(sample.job).inc(sample.samples)
        self.comm_wait.labels(sample.job).inc(max(0.0, sample.comm_wait_s))
        for way, sent in sample.wire_bytes.items():
            axis, _, scheme = wire_way(way)
            self.wire_bytes.labels(sample.job, axis, scheme_kind(scheme)).inc(sent)
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
            for metric in (self.step_seconds, self.loss, self.step, self.tokens, self.samples, self.comm_wait):
                metric.remove(job)
            for axis in WIRE_AXES:
                for kind in SCHEME_KINDS:
                    with contextlib.suppress(KeyError):
                        self.wire_bytes.remove(job, axis, kind)
