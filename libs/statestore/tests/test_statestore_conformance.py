import pytest

from distroml.statestore.conformance import StateStoreConformance
from distroml.statestore.memory import MemoryDatabase
from distroml.statestore.memory import open_state_store as open_memory
from distroml.statestore.sqlite import SqliteDatabase, open_state_store
from distroml.statestore.store import TableStateStore


class Clock:
    """A clock that the test moves."""

    boot = "boot-1"

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def wall_ms(self):
        return int(self.now * 1000)


class MovedClock(StateStoreConformance):
    async def pass_time(self, store, seconds):
        for _ in range(round(seconds / 0.25)):
            self.clock.now += 0.25
            await store.sweep()


class TestMemory(MovedClock):
    @pytest.fixture
    async def store(self):
        self.clock = Clock()
        store = open_memory(MemoryDatabase(clock=self.clock, sweep=False))
        yield store
        await store.close()


class TestSqlite(MovedClock):
    @pytest.fixture
    async def store(self, tmp_path):
        self.clock = Clock()
        store = TableStateStore(SqliteDatabase(tmp_path / "store.db", clock=self.clock, sweep=False))
        yield store
        await store.close()


class TestSqliteOnItsOwnClock(StateStoreConformance):
    @pytest.fixture
    async def store(self, tmp_path):
        store = open_state_store(tmp_path / "store.db")
        yield store
        await store.close()


class TestMemoryOnItsOwnClock(StateStoreConformance):
    @pytest.fixture
    async def store(self):
        store = open_memory()
        yield store
        await store.close()
