import pytest

from distroml.eventstore import memory, sqlite
from distroml.eventstore.conformance import EventStoreConformance
from distroml.eventstore.retiring_conformance import RetiringConformance
from distroml.statestore.memory import MemoryDatabase
from distroml.statestore.memory import open_state_store as open_memory_state
from distroml.statestore.sqlite import open_state_store


class TestMemory(EventStoreConformance, RetiringConformance):
    @pytest.fixture
    async def stores(self):
        database = MemoryDatabase("dep-1")
        events, state = memory.open_event_store(database), open_memory_state(database)
        yield events, state
        await events.close()
        await state.close()


class TestSqlite(EventStoreConformance, RetiringConformance):
    @pytest.fixture
    async def stores(self, tmp_path):
        events = sqlite.open_event_store(tmp_path / "store.db", deployment="dep-1")
        state = open_state_store(tmp_path / "store.db")
        yield events, state
        await sqlite_is_whole(tmp_path / "store.db")
        await events.close()
        await state.close()


async def sqlite_is_whole(path):
    """After every test the chain of hashes still holds."""
    store = sqlite.open_event_store(path)
    assert await sqlite.verify_log(store) == []
    await store.close()
