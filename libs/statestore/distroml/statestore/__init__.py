"""Compare-and-set keys, leases and watches behind one port."""

from distroml.statestore.port import (
    CasConflict,
    Change,
    Compacted,
    Entry,
    LeaseGone,
    Listing,
    StateStore,
    StateStoreDown,
    StateStoreError,
)

__all__ = [
    "CasConflict",
    "Change",
    "Compacted",
    "Entry",
    "LeaseGone",
    "Listing",
    "StateStore",
    "StateStoreDown",
    "StateStoreError",
]
