"""One file under several hands: replaced while it is read, and damaged for several at once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

from distroml.telemetry.adapters.database import Layout
from distroml.telemetry.adapters.sqlitefile import SqliteFile

LAYOUT = Layout(format=1, schema="CREATE TABLE numbers (n INTEGER);")


def put(*numbers: int):
    return lambda db: db.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in numbers])


def total(db: sqlite3.Connection) -> int:
    return db.execute("SELECT ifnull(sum(n), 0) FROM numbers").fetchone()[0]


async def test_who_reads_while_the_file_is_replaced_reads_the_new_one(tmp_path: Path) -> None:
    path, new = tmp_path / "numbers.sqlite", tmp_path / "new.sqlite"
    async with SqliteFile(new, LAYOUT) as file:
        await file.write(put(2))
    async with SqliteFile(path, LAYOUT) as file:
        await file.write(put(1))
        assert await file.read(total) == 1
        begun, go = threading.Event(), threading.Event()

        def replace() -> None:
            begun.set()
            assert go.wait(20)
            os.replace(new, path)

        replacing = asyncio.create_task(file.outside(replace))
        assert await asyncio.to_thread(begun.wait, 20)
        reading = asyncio.create_task(file.read(total))
        # It has to wait; one that is let in has its answer by then.
        await asyncio.wait({reading}, timeout=0.5)
        go.set()
        await replacing
        assert await reading == 2
        assert await file.read(total) == 2


async def test_whoever_replaced_in_vain_keeps_nobody_from_reading(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "numbers.sqlite", LAYOUT) as file:
        await file.write(put(1))
        begun, go = threading.Event(), threading.Event()

        def write(db: sqlite3.Connection) -> None:
            begun.set()
            assert go.wait(20)
            db.execute("INSERT INTO numbers VALUES (2)")

        writing = asyncio.create_task(file.write(write))
        assert await asyncio.to_thread(begun.wait, 20)
        replacing = asyncio.create_task(file.outside(lambda: None))
        await asyncio.sleep(0)
        replacing.cancel()
        await asyncio.gather(replacing, return_exceptions=True)
        go.set()
        await writing
        async with asyncio.timeout(20):
            assert await file.read(total) == 3


async def test_damage_that_several_meet_at_once_sets_one_file_aside(tmp_path: Path) -> None:
    path = tmp_path / "numbers.sqlite"
    async with SqliteFile(path, LAYOUT) as file:
        await file.write(put(*range(5000)))
        writer = file._writer
        assert writer is not None
        run = asyncio.get_running_loop().run_in_executor
        await run(file._write_thread, writer.execute, "PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as raw:
            raw.seek(4096)
            raw.write(b"\xff" * (path.stat().st_size - 4096))
        assert await asyncio.gather(*(file.read(total) for _ in range(5))) == [0] * 5
        assert file.epoch == 1
        await file.write(put(7))
        assert await file.read(total) == 7
