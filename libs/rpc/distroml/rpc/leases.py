"""Says in metrics which roles this process has a lease for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from distroml.observability import names
from distroml.observability.metrics import gauge

_HELD = gauge(
    names.LEASE_HELD,
    "Whether this replica has the lease of a role and does its work (1), or waits for it (0).",
    (names.LABEL_LEASE,),
)


@contextmanager
def lease_held(lease: str) -> Generator[None]:
    """This replica has `lease` for as long as the block lasts."""
    held = _HELD.labels(lease)
    held.set(1)
    try:
        yield
    finally:
        held.set(0)
