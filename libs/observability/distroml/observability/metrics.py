"""Making metrics: in the process' one registry, or in one of a test's own. Each says what it counts, and is listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

FAST_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what should take milliseconds, in seconds."""

__all__ = [
    "FAST_BUCKETS_S",
    "REGISTRY",
    "CollectorRegistry",
    "Counter",
    "Described",
    "Gauge",
    "Histogram",
    "counter",
    "described",
    "gauge",
    "histogram",
]

# A second series for each counter and histogram, which no query of ours asks for.
disable_created_metrics()


@dataclass(frozen=True, slots=True)
class Described:
    """A metric that this process made; `kind` is `counter`, `gauge` or `histogram`."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


_described: dict[str, Described] = {}


def described() -> Sequence[Described]:
    """Every metric made so far, by name."""
    return [_described[name] for name in sorted(_described)]


def counter(name: str, help: str, labels: Sequence[str] = (), registry: CollectorRegistry = REGISTRY) -> Counter:
    """A count that only grows; `name` ends in `_total`."""
    _described[name] = Described(name, "counter", help, tuple(labels))
    return Counter(name, help, labels, registry=registry)


def gauge(name: str, help: str, labels: Sequence[str] = (), registry: CollectorRegistry = REGISTRY) -> Gauge:
    """A value that goes up and down."""
    _described[name] = Described(name, "gauge", help, tuple(labels))
    return Gauge(name, help, labels, registry=registry)


def histogram(
    name: str,
    help: str,
    labels: Sequence[str] = (),
    buckets: Sequence[float] = FAST_BUCKETS_S,
    registry: CollectorRegistry = REGISTRY,
) -> Histogram:
    """A distribution; `name` ends in its unit."""
    _described[name] = Described(name, "histogram", help, tuple(labels))
    return Histogram(name, help, labels, buckets=buckets, registry=registry)
