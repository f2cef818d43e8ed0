"""The promises of the object store port as tests, for any back end.

A back end's test inherits `ObjectStoreConformance` and overrides the fixture `store`. Needs pytest; nothing else
imports it.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distroml.objectstore.port import NoSuchObject, ObjectExists, ObjectStore


class ObjectStoreConformance:
    """Inherit, and override `store` with a new, empty object store."""

    @pytest.fixture
    def store(self) -> Iterator[ObjectStore]:
        """An empty store; closed afterwards."""
        raise NotImplementedError
        yield

    def test_what_is_put_is_got_back(self, store: ObjectStore):
        before = time.time()
        info = store.put("a/b", b"hello")
        assert (info.key, info.size) == ("a/b", 5)
        assert before - 60 < info.written_at < time.time() + 60
        assert store.get("a/b") == b"hello"
        assert store.head("a/b") == info

    def test_ranges(self, store: ObjectStore):
        store.put("k", b"0123456789")
        assert store.get("k", offset=3) == b"3456789"
        assert store.get("k", offset=3, length=2) == b"34"
        assert store.get("k", length=0) == b""
        assert store.get("k", offset=8, length=10) == b"89"
        assert store.get("k", offset=10) == store.get("k", offset=99) == b""
        for offset, length in ((-1, None), (0, -1)):
            with pytest.raises(ValueError, match="negative"):
                store.get("k", offset=offset, length=length)

    def test_every_kind_of_data(self, store: ObjectStore, tmp_path: Path):
        data = bytes(range(256)) * 10_000
        path = tmp_path / "file"
        path.write_bytes(data)
        store.put("bytes", data)
        store.put("view", memoryview(data))
        store.put("file", io.BytesIO(data))
        store.put("path", path)
        store.put("empty", b"")
        for key in ("bytes", "view", "file", "path"):
            assert store.get(key) == data
            assert b"".join(store.stream(key, block=65536)) == data
        assert store.get("empty") == b""
        assert list(store.stream("empty")) == []

    def test_an_absent_object(self, store: ObjectStore):
        store.put("a/b", b"")
        for key in ("x", "a", "a/b/c", "a/x"):
            assert store.head(key) is None
            with pytest.raises(NoSuchObject) as caught:
                store.get(key)
            assert caught.value.key == key
            with pytest.raises(NoSuchObject):
                next(store.stream(key))
            store.delete(key)

    def test_a_put_replaces_unless_told_not_to(self, store: ObjectStore):
        store.put("k", b"1")
        store.put("k", b"2")
        with pytest.raises(ObjectExists) as caught:
            store.put("k", b"3", if_absent=True)
        assert caught.value.key == "k"
        assert store.get("k") == b"2"
        store.delete("k")
        store.put("k", b"4", if_absent=True)
        assert store.get("k") == b"4"

    def test_of_many_conditional_puts_one_wins(self, store: ObjectStore):
        won: list[int] = []
        start = threading.Barrier(8)

        def put(n: int) -> None:
            start.wait()
            try:
                store.put("d/k", b"%d" % n * 1000, if_absent=True)
                won.append(n)
            except ObjectExists:
                pass

        threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get("d/k") == b"%d" % won[0] * 1000

    def test_puts_and_deletes_in_one_folder_do_not_disturb_each_other(self, store: ObjectStore):
        failures: list[BaseException] = []

        def churn(n: int) -> None:
            try:
                for _ in range(30):
                    store.put(f"d/e/{n}", b"x")
                    store.delete(f"d/e/{n}")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=churn, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.list() == []

    def test_a_key_may_be_the_beginning_of_another(self, store: ObjectStore):
        for key in ("a", "a/b", "a/b/c", "a@", "a@/b", "%40", "a%40/c"):
            store.put(key, key.encode())
        for key in ("a", "a/b", "a/b/c", "a@", "a@/b", "%40", "a%40/c"):
            assert store.get(key) == key.encode()
        store.delete("a/b")
        assert store.get("a/b/c") == b"a/b/c"

    def test_listing_is_in_key_order_and_paged(self, store: ObjectStore):
        keys = ["a", "a-b", "a.b", "a/1", "a/10", "a/2/x", "a/2/y", "a0", "b/1", "é", "a@", "a@/z"]
        for key in keys:
            store.put(key, b"")
        ordered = sorted(keys)
        assert [info.key for info in store.list()] == ordered
        for prefix in ("a", "a/", "a/2", "a/2/", "b/1", "x", "a@", "é", "a/1", "//", "a/../"):
            expected = [key for key in ordered if key.startswith(prefix)]
            assert [info.key for info in store.list(prefix)] == expected
            for size in (1, 2, 5):
                pages: list[str] = []
                while page := store.list(prefix, after=pages[-1] if pages else "", limit=size):
                    assert len(page) <= size
                    pages += [info.key for info in page]
                assert pages == expected
        assert [info.key for info in store.list(after="a/2")] == [key for key in ordered if key > "a/2"]

    def test_a_stream_is_of_one_object_though_it_is_replaced(self, store: ObjectStore):
        store.put("k", b"a" * 100)
        blocks = store.stream("k", block=10)
        first = next(blocks)
        store.put("k", b"b" * 100)
        assert first + b"".join(blocks) == b"a" * 100

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "../x", "a/../b", "a\0b", "a\nb", "a\\b", "k" * 2000])
    def test_a_malformed_key_is_refused(self, store: ObjectStore, key: str):
        with pytest.raises(ValueError, match="object key"):
            store.put(key, b"")
        with pytest.raises(ValueError, match="object key"):
            store.get(key)
