"""The errors of the stores below in the words of the event store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from distroml.eventstore.port import StoreDamaged, StoreDown, StoreFull
from distroml.objectstore import ObjectDamaged, ObjectStoreDown, ObjectStoreFull
from distroml.statestore.port import StateStoreDamaged, StateStoreDown, StateStoreFull

P = ParamSpec("P")
R = TypeVar("R")


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


async def on_objects(what: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """A blocking call of the object store in a thread, its trouble told as that of `what` is kept there."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except ObjectStoreFull as error:
        raise StoreFull(f"{what}: {error}") from error
    except ObjectDamaged as error:
        raise StoreDamaged(f"{what}: {error}") from error
    except ObjectStoreDown as error:
        raise StoreDown(f"{what}: {error}") from error
