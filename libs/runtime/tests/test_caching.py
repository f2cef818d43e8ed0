"""What was measured is kept for the next run, and a machine that keeps nothing trains all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from distroml.planner import Corrections
from distroml.runtime.caching import discard, write_down
from distroml.runtime.comm.algorithms import Choice, Timed, chosen
from distroml.runtime.parallel.remembered import cache_folder, keep, kept
from distroml.runtime.profile import probe


def test_what_is_written_down_is_there_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "sums-1.json"
    write_down(path, b"first")
    write_down(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]
    discard(path)
    discard(path)
    assert not path.exists()


@pytest.mark.parametrize("write", ["plans", "sums", "links"])
def test_a_folder_that_takes_no_file_is_told_of_and_ends_no_training(
    write: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    cache = tmp_path / "file" / "plans"
    with caplog.at_level(logging.WARNING):
        match write:
            case "plans":
                keep(cache, "corrections", "key", Corrections())
            case "sums":
                chosen._write(cache / "sums-1.json", Choice((Timed(1, {"flat": 1.0}),)))
            case _:
                probe._write(cache / "links-1.json", probe.Probed([], {}))
    assert "is not kept" in caplog.text
    assert kept(cache, "corrections", "key", Corrections) is None


def test_a_file_that_cannot_go_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        discard(tmp_path)
    assert "stays" in caplog.text


def test_a_user_without_a_home_has_a_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert cache_folder({}).is_absolute()
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/distroml/plans")
    assert cache_folder({"DISTROML_CACHE": "/y"}) == Path("/y/plans")
