"""What only the file system back end promises: crashes, full disks, leftovers."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from distroml.objectstore import ObjectStoreDown, ObjectStoreFull
from distroml.objectstore.filesystem import open_object_store

CHILD = """
import sys
from distroml.objectstore.filesystem import open_object_store
from distroml.statestore import failpoint

store = open_object_store(sys.argv[1])
store.put("new/folder/k", b"new" * 100_000, if_absent=True)
store.put("k", b"new" * 100_000)
print(failpoint.hits())
"""


def child(root, failpoint):
    environment = os.environ | {"DISTROML_FAILPOINT": failpoint}
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(root)], env=environment, capture_output=True, text=True, timeout=30
    )


def test_a_killed_put_leaves_the_old_object_or_the_new(tmp_path):
    points = int(child(tmp_path / "count", "object.put:count").stdout)
    assert points > 8
    seen = []
    for nth in range(1, points + 1):
        root = tmp_path / str(nth)
        open_object_store(root).put("k", b"old")
        assert child(root, f"object.put:kill:{nth}").returncode == -signal.SIGKILL
        store = open_object_store(root)
        assert list((root / "tmp").iterdir()) == []
        new = b"new" * 100_000
        conditional = None if store.head("new/folder/k") is None else store.get("new/folder/k")
        assert conditional in (None, new)
        assert store.get("k") in (b"old", new)
        assert [info.key for info in store.list()] == (["k"] if conditional is None else ["k", "new/folder/k"])
        seen.append((conditional is not None, store.get("k") == new))
        store.put("k", b"again")
        assert store.get("k") == b"again"
    assert seen == sorted(seen)
    assert {(False, False), (True, False), (True, True)} == set(seen)


def test_the_temporary_file_of_a_living_writer_is_left_alone(tmp_path):
    store = open_object_store(tmp_path)

    class Slow:
        def __init__(self):
            self.left = 2

        def read(self, size):
            assert open_object_store(tmp_path).collect_leftovers() == 0
            self.left -= 1
            return b"x" * self.left

    store.put("k", Slow())
    assert store.get("k") == b"x"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_means_nothing_under_the_key(tmp_path, monkeypatch, code):
    store = open_object_store(tmp_path)
    store.put("old", b"1")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for key, absent in (("new", True), ("old", False)):
            with pytest.raises(ObjectStoreFull, match="nothing was written"):
                store.put(key, b"2", if_absent=absent)
    assert store.head("new") is None
    assert store.get("old") == b"1"
    assert list((tmp_path / "tmp").iterdir()) == []
    store.put("new", b"2")


def test_a_real_file_size_limit_is_no_room(tmp_path):
    store = open_object_store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ObjectStoreFull):
            store.put("k", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.list() == []
    store.put("k", b"x" * 200_000)


def test_other_trouble_is_down(tmp_path):
    (tmp_path / "objects").write_text("a file where the folder should be")
    with pytest.raises(ObjectStoreDown):
        open_object_store(tmp_path)


def test_a_page_reads_only_the_folders_on_its_way(tmp_path, monkeypatch):
    store = open_object_store(tmp_path)
    for n in range(30):
        store.put(f"d{n:02}/k", b"")
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    begun = time.perf_counter()
    assert [info.key for info in store.list(after="d20/k", limit=2)] == ["d21/k", "d22/k"]
    assert len(opened) <= 5
    assert time.perf_counter() - begun < 5
