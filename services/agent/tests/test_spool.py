from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from distroml.agent.spool import Entry, Spool


def entry(id: str, kind: str = "exit", group: str = "job-1.1", body: bytes = b"body") -> Entry:
    return Entry(kind, group, id, body)


def ids(spool: Spool) -> list[str]:
    return [each.id for each in spool.pending()]


def test_what_is_put_is_there_again_until_it_is_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for id in ("a", "b", "c", "b"):
        spool.put(entry(id))
    spool.ack("b")
    spool.ack("b")
    spool.ack("never heard of")
    spool.sync()
    assert ids(spool) == ["a", "c"]
    spool.close()
    again = Spool(tmp_path / "spool")
    assert ids(again) == ["a", "c"]
    assert list(again.pending(kind="other")) == []
    assert [e.id for e in again.pending(kind="exit", group="job-1.1")] == ["a", "c"]
    again.put(entry("d", kind="other"))
    again.forget(kind="exit", group="job-1.1")
    assert ids(again) == ["d"]
    again.close()


def test_cut_off_anywhere_it_keeps_every_record_before_the_cut(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    ends: list[tuple[int, list[str]]] = [(0, [])]
    for number in range(6):
        spool.put(entry(str(number), body=b"x" * number * 7))
        ends.append(((tmp_path / "spool").stat().st_size, ids(spool)))
        if number % 2:
            spool.ack(str(number - 1))
            ends.append(((tmp_path / "spool").stat().st_size, ids(spool)))
    spool.close()
    whole = (tmp_path / "spool").read_bytes()
    for cut in range(len(whole) + 1):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(whole[:cut])
        torn = Spool(path)
        assert ids(torn) == next(kept for end, kept in reversed(ends) if end <= cut)
        torn.put(entry("after"))
        torn.close()
        healed = Spool(path)
        assert ids(healed)[-1] == "after"
        healed.close()


def test_a_flipped_byte_loses_only_what_follows(tmp_path: Path) -> None:
    random.seed(1)
    spool = Spool(tmp_path / "spool")
    for number in range(5):
        spool.put(entry(str(number)))
    spool.close()
    whole = (tmp_path / "spool").read_bytes()
    size = len(whole) // 5
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << random.randrange(8)
        (tmp_path / "spool").write_bytes(damaged)
        torn = Spool(tmp_path / "spool")
        assert ids(torn) == [str(n) for n in range(at // size)]
        torn.close()


def test_it_is_bounded_and_counts_what_it_drops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "spool", cap_bytes=10_000)
    for number in range(100):
        spool.put(entry(str(number), body=b"x" * 1000))
    assert spool.dropped == 100 - len(ids(spool))
    told = [record for record in caplog.records if "oldest reports are dropped" in record.getMessage()]
    assert len(told) == len([1, 2, 4, 8, 16, 32, 64]), "once, and then ever less often"
    assert 5 <= len(ids(spool)) <= 10
    assert ids(spool)[-1] == "99"
    spool.close()
    again = Spool(tmp_path / "spool", cap_bytes=10_000)
    assert ids(again)[-1] == "99"
    assert len(ids(again)) <= 10
    again.close()


def test_the_file_stays_small(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put(entry("kept"))
    for number in range(4000):
        spool.put(entry(str(number), body=b"x" * 1000))
        spool.ack(str(number))
    assert (tmp_path / "spool").stat().st_size < 2 << 20
    assert ids(spool) == ["kept"]
    spool.close()
    again = Spool(tmp_path / "spool")
    assert ids(again) == ["kept"]
    again.close()


def test_the_file_stays_small_where_nothing_is_ever_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", cap_bytes=100_000)
    for number in range(4000):
        spool.put(entry(str(number), body=b"x" * 1000))
    assert (tmp_path / "spool").stat().st_size < 2 << 20
    kept = ids(spool)
    spool.close()
    again = Spool(tmp_path / "spool")
    assert ids(again) == kept
    again.close()


def test_a_full_disk_is_an_error_and_the_report_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put(entry("a"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(OSError, match="No space"):
            spool.put(entry("b"))
    assert ids(spool) == ["a", "b"]
    spool.put(entry("c"))
    spool.close()
    again = Spool(tmp_path / "spool")
    assert ids(again) == ["a", "c"]
    again.close()


def test_on_a_full_disk_reports_are_acknowledged_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool")
    for id in ("a", "b"):
        spool.put(entry(id))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        spool.ack("a")
    assert ids(spool) == ["b"]
    spool.ack("b")
    spool.close()
    again = Spool(tmp_path / "spool")
    assert ids(again) == ["a"], "it is sent once more"
    again.close()


def test_a_disk_that_fills_while_the_file_is_made_smaller_costs_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put(entry("kept", body=b"x" * 5000))
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr("os.write", lambda fd, data: write(fd, data[:4096]))
        for number in range(1200):
            spool.put(entry(str(number), body=b"x" * 1000))
            spool.ack(str(number))
    spool.close()
    again = Spool(tmp_path / "spool")
    assert ids(again) == ["kept"]
    again.close()
