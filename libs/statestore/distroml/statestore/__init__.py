"""Compare-and-set keys, leases and watches behind one port."""

from distroml.statestore.port import (
    CasConflict,
    Change,
    Compacted,
    Entry,
    LeaseGone,
    Listing,
    StateStore,
    StateStoreDamaged,
    StateStoreDown,
    StateStoreError,
    StateStoreFull,
)

__all__ = [
    "CasConflict",
    "Change",
    "Compacted",
    "Entry",
    "LeaseGone",
    "Listing",
    "StateStore",
    "StateStoreDamaged",
    "StateStoreDown",
    "StateStoreError",
    "StateStoreFull",
]
