import pytest

from distroml.objectstore import filesystem, memory
from distroml.objectstore.conformance import ObjectStoreConformance
from distroml.objectstore.later import LaterObjectStore


class TestMemory(ObjectStoreConformance):
    @pytest.fixture
    def store(self):
        return memory.open_object_store()


class TestLater(ObjectStoreConformance):
    @pytest.fixture
    def store(self):
        return LaterObjectStore(memory.open_object_store)


class TestFilesystem(ObjectStoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        store = filesystem.open_object_store(tmp_path / "store")
        yield store
        assert list((tmp_path / "store" / "tmp").iterdir()) == []
