from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from distroml.rpc import stores


async def test_an_embedded_store_that_takes_no_write_is_told_for_as_long_as_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "EMBEDDED_S", 0.01)
    trouble, told = ["no room"], list[tuple[str, str | None]]()
    nothing = cast(Any, None)
    embedded = stores.Stores(nothing, nothing, nothing, trouble=lambda: trouble[0])
    watching = asyncio.create_task(embedded.watch(lambda part, why: told.append((part, why))))
    try:
        async with asyncio.timeout(10):
            while (stores.STORE, "no room") not in told:
                await asyncio.sleep(0.01)
            trouble[0] = ""
            while (stores.STORE, None) not in told:
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
