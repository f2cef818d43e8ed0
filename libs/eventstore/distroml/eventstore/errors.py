"""The shared back end's errors in the words of the event store."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from distroml.eventstore.port import StoreDamaged, StoreDown, StoreFull
from distroml.statestore.port import StateStoreDamaged, StateStoreDown, StateStoreFull


@contextmanager
def translated() -> Generator[None]:
    """Raise the event store's error for each of the state store's."""
    try:
        yield
    except StateStoreFull as error:
        raise StoreFull(str(error)) from error
    except StateStoreDamaged as error:
        raise StoreDamaged(str(error)) from error
    except StateStoreDown as error:
        raise StoreDown(str(error)) from error
