"""The process that ships lines: it stands back, dies without a line being lost, and counts what it passes over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from distroml.agent.adapters.lines import (
    Arrived,
    Delivered,
    Finish,
    Finished,
    Follow,
    LinesApart,
    ShipperEnded,
    Tail,
)
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.logstore import Line
from services.agent.tests.plane import Plane, until

LOUD = 40_000


async def test_lines_leave_by_a_process_that_may_die(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0) + 1
    for name, value in {
        "DATA": str(tmp_path),
        "DEPLOYMENT": "dep-1",
        "TELEMETRY": plane.endpoint,
        "AGENT_LOG_BYTES_PER_S": "50000",
        "AGENT_LOG_NICE": str(nice),
    }.items():
        monkeypatch.setenv(f"DISTROML_{name}", value)
    (tmp_path / "node").mkdir()
    (tmp_path / "token").write_text("token")
    (tmp_path / "token").chmod(0o600)
    counted: Counter[str] = Counter()

    def count(outcome: str, lines: int, limited_bytes: int = 0) -> None:
        counted[outcome] += lines
        counted["bytes"] += limited_bytes

    lines = LinesApart(count=count, tell=lambda why: None)
    folders = [tmp_path / "quiet", tmp_path / "loud"]
    for folder in folders:
        folder.mkdir()

    def write(folder: Path, text: str, stream: str = "stdout") -> None:
        with (folder / stream).open("a") as file:
            file.write(text)

    def told() -> dict[tuple[str, str, int], Line]:
        return {(record.worker, record.stream, record.offset): record for record in plane.telemetry.records()}

    def texts(worker: str) -> list[str]:
        return [record.text for (whose, _, _), record in sorted(told().items()) if whose == worker]

    running = asyncio.create_task(lines.run())
    quiet, loud = (lines.follow(folder, pb.LogRecord(job="job-1", worker=folder.name, rank=3)) for folder in folders)
    write(folders[0], "first\n")
    await until(lambda: texts("quiet") == ["first"])
    assert os.getpriority(os.PRIO_PROCESS, lines.pid) == nice
    before = quiet.grown_at
    quiet.look()
    assert quiet.grown_at > before
    quiet.place(1, 2)

    os.kill(lines.pid, signal.SIGKILL)
    with pytest.raises(ShipperEnded, match="status -9"):
        await running
    assert lines.pid == 0
    write(folders[0], "second\nno end")
    running = asyncio.create_task(lines.run())
    await until(lambda: texts("quiet") == ["first", "second"])
    second = next(record for record in told().values() if record.text == "second")
    assert (second.rank, second.generation) == (1, 2)
    await quiet.finish()
    await until(lambda: texts("quiet") == ["first", "second", "no end"])

    write(folders[1], "".join(f"{number} {'x' * 90}\n" for number in range(LOUD)))
    await loud.finish()
    # Its note of what was passed over stands between the lines that were shipped.
    await until(lambda: texts("loud") and texts("loud")[-1].startswith(f"{LOUD - 1} "))
    await lines.stop()
    await running
    shipped = [text for text in texts("loud") if "were not shipped" not in text]
    assert counted["limited"] > LOUD / 2
    assert len(shipped) + counted["limited"] == LOUD
    assert sum(len(text) + 1 for text in shipped) + counted["bytes"] == (folders[1] / "stdout").stat().st_size


def test_a_new_process_goes_on_where_lines_had_arrived_until_all_have(tmp_path: Path) -> None:
    counted: Counter[str] = Counter()
    lines = LinesApart(
        count=lambda outcome, number, limited_bytes=0: counted.update({outcome: number, "bytes": limited_bytes}),
        tell=lambda why: None,
    )
    tail = lines.follow(tmp_path, pb.LogRecord(worker="w"))
    lines.heard(Arrived(str(tmp_path), {"stdout": 7}, {"shipped": 2, "limited": 3}, 40))
    assert counted == {"shipped": 2, "limited": 3, "bytes": 40}
    assert lines.orders() == [Follow(str(tmp_path), pb.LogRecord(worker="w").SerializeToString(), {"stdout": 7})]
    asyncio.run(asyncio.wait_for(_finished(lines, tail, tmp_path), 10))
    # It was read to its end, and not all of it has arrived: a new one reads that again.
    assert lines.orders()[1:] == [Finish(str(tmp_path))]
    lines.heard(Delivered(str(tmp_path)))
    assert lines.orders() == []


async def _finished(lines: LinesApart, tail: Tail, folder: Path) -> None:
    finishing = asyncio.create_task(tail.finish())
    await asyncio.sleep(0)
    lines.heard(Finished(str(folder)))
    await finishing


async def test_the_process_ends_with_its_agent_and_says_what_it_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTROML_DATA", str(tmp_path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "distroml.agent.shipper"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"cannot start: " in err
