"""Files that are written whole or not at all, on a disk that takes a part of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from distroml.agent.adapters import processes
from distroml.agent.output import write_whole


@pytest.mark.parametrize("write", [write_whole, lambda path, data: processes.write_whole(Path(path), data)])
def test_a_disk_that_takes_a_part_leaves_the_old_file(
    write: Callable[[str, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write(str(path), b"old")
    taken, kernel = 0, os.write

    def nearly_full(fd: int, data: bytes) -> int:
        nonlocal taken
        if taken >= 4096:
            raise OSError(28, "No space left on device")
        written = kernel(fd, data[: 4096 - taken])
        taken += written
        return written

    with monkeypatch.context() as patch:
        patch.setattr("os.write", nearly_full)
        with pytest.raises(OSError, match="No space"):
            write(str(path), b"x" * 5000)
    assert path.read_bytes() == b"old"
    write(str(path), b"x" * 5000)
    assert path.read_bytes() == b"x" * 5000
