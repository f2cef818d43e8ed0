"""Making metrics: in the process' one registry, or in one of a test's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

FAST_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what should take milliseconds, in seconds."""

__all__ = [
    "FAST_BUCKETS_S",
    "REGISTRY",
    "CollectorRegistry",
    "Counter",
    "Gauge",
    "Histogram",
    "counter",
    "gauge",
    "histogram",
]


def counter(name: str, help: str, labels: Sequence[str] = (), registry: CollectorRegistry = REGISTRY) -> Counter:
    """A count that only grows; `name` ends in `_total`."""
    return Counter(name, help, labels, registry=registry)


def gauge(name: str, help: str, labels: Sequence[str] = (), registry: CollectorRegistry = REGISTRY) -> Gauge:
    """A value that goes up and down."""
    return Gauge(name, help, labels, registry=registry)


def histogram(
    name: str,
    help: str,
    labels: Sequence[str] = (),
    buckets: Sequence[float] = FAST_BUCKETS_S,
    registry: CollectorRegistry = REGISTRY,
) -> Histogram:
    """A distribution; `name` ends in its unit."""
    return Histogram(name, help, labels, buckets=buckets, registry=registry)
