"""What only the SQLite back end promises: damage, full disks, other processes, formats."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from distroml.eventstore import Append, Commit, Part, Sealed, StoreDamaged, StoreDown, StoreFull
from distroml.eventstore.conformance import CONTEXT, append, commit_of, event, take
from distroml.eventstore.sqlite import event_store, open_event_store, verify_log
from distroml.statestore.sqlite import SqliteDatabase, open_state_store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


async def filled(path, commits=20):
    store = open_event_store(path, deployment="dep-1")
    for n in range(commits):
        await store.commit(commit_of(append("s/a/1", n), parts=(Part("p", b"x" * 3000),)))
    await store.close()


async def test_a_closed_store_is_read_again(path):
    await filled(path)
    store = open_event_store(path)
    assert store.log_id == "dep-1"
    assert await store.version("s/a/1") == 20
    await store.close()
    with pytest.raises(StoreDown, match="closed"):
        await store.read()
    with pytest.raises(StoreDown, match="closed"):
        await store.commit(commit_of(append("s/a/1", 20)))


async def test_a_file_from_before_streams_were_retired_takes_them_too(path):
    await filled(path, 2)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE sealed")
    connection.close()
    store = open_event_store(path)
    await store.retire("s/a/1", version=2, keys=("p",))
    await store.close()
    store = open_event_store(path)
    assert await store.sealed("s/a/1") == Sealed(2, {"p": b"x" * 3000})
    assert await verify_log(store) == []
    await store.close()


async def test_closing_ends_every_thread(path):
    before = set(threading.enumerate())
    store, state = open_event_store(path), open_state_store(path)
    await store.commit(commit_of(append("s/a/1", 0)))
    await store.close()
    assert await state.get("k") is None
    await state.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("sqlite")]
    assert left == []


async def test_a_garbage_file_is_damage(path):
    path.write_bytes(os.urandom(9000))
    with pytest.raises(StoreDamaged, match="restore it") as caught:
        open_event_store(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [50, 4096 * 3, 0.5, 0.9])
async def test_a_truncated_file_is_damage(path, keep):
    await filled(path)
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep)
    with pytest.raises(StoreDamaged, match="damaged"):
        open_event_store(path)


async def test_a_file_of_another_format_or_program_or_deployment_is_refused(path, tmp_path):
    await filled(path, 1)
    with pytest.raises(StoreDown, match="deployment 'dep-1'"):
        open_event_store(path, deployment="dep-2")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreDown, match="format 99"):
        open_event_store(path)
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StoreDown, match="other program"):
        open_event_store(tmp_path / "other.db")


async def test_an_absent_file_is_only_made_when_asked(path, tmp_path):
    with pytest.raises(StoreDown, match="no store here"):
        open_event_store(path, create=False)
    assert not path.exists()
    with pytest.raises(StoreDown):
        open_event_store(tmp_path / "no" / "folder" / "store.db")
    with pytest.raises(StoreDown, match="not a file"):
        open_event_store(tmp_path)


def test_without_permission_the_error_says_so(tmp_path):
    asyncio.run(filled(tmp_path / "store.db", 1))
    script = (
        "import os, sys\n"
        "from distroml.eventstore.sqlite import open_event_store\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: open_event_store(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
        if folder.name.startswith("pytest-"):
            break
    (tmp_path / "store.db").chmod(0o444)
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "store.db"], capture_output=True, text=True)
    assert done.stdout.startswith("StoreDown"), done.stderr
    assert "ermission denied" in done.stdout or "may not write" in done.stdout


async def test_a_flipped_byte_in_an_event_is_found(path):
    await filled(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE events SET data = '{\"n\":9}' WHERE version = 7")
    connection.execute("UPDATE events SET data = CAST(data AS BLOB) WHERE version = 7")
    connection.commit()
    connection.close()
    store = open_event_store(path)
    with pytest.raises(StoreDamaged, match="checksum"):
        await store.read()
    assert len(await store.read_stream("s/a/1", limit=6)) == 6
    assert {damage.revision for damage in await verify_log(store)} == {7}
    await store.close()


@pytest.mark.parametrize(
    ("damage", "revisions"),
    [
        ("UPDATE commits SET context = replace(context, 'ann', 'bob') WHERE revision = 3", {3}),
        ("UPDATE commits SET context = CAST(x'ff' || context AS TEXT) WHERE revision = 3", {3}),
        ("DELETE FROM events WHERE version = 4", {4}),
        ("DELETE FROM commits WHERE revision = 5", {6}),
        ("DELETE FROM commits WHERE revision = 20", {0}),
    ],
)
async def test_the_chain_finds_what_was_changed_or_removed(path, damage, revisions):
    await filled(path)
    connection = sqlite3.connect(path)
    connection.execute(damage)
    connection.commit()
    connection.close()
    store = open_event_store(path)
    assert {found.revision for found in await verify_log(store)} == revisions
    await store.close()


async def test_a_full_disk_refuses_writes_nothing_and_goes_on_later(path):
    await filled(path, 3)
    store = open_event_store(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = tuple(event(n, data=b"x" * 60_000) for n in range(10))
    # The kernel refuses what is past the limit with EFBIG, which SQLite reports as a bare I/O error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(StoreFull, match="nothing was written"):
            await store.commit(commit_of(Append("s/large", 0, large)))
        assert "no room" in store.database.trouble
        outcomes = await asyncio.gather(
            store.commit(commit_of(Append("s/large", 0, large))),
            *(store.commit(commit_of(append(f"s/small/{n}", 0))) for n in range(5)),
            return_exceptions=True,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # A small commit is not refused because it was batched with one that did not fit.
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [True, False, False, False, False, False]
    assert await store.version("s/large") == 0
    await store.commit(commit_of(Append("s/large", 0, large)))
    assert store.database.trouble == ""
    assert await verify_log(store) == []
    await store.close()


async def test_sqlite_full_is_full_too(path):
    await filled(path, 3)
    database = SqliteDatabase(path)
    store = event_store(database)
    pages = await database.read(lambda tables: tables.query("PRAGMA page_count")[0][0])
    await database.write(lambda tables: tables.query(f"PRAGMA max_page_count = {pages + 2}"))
    large = tuple(event(n, data=b"x" * 60_000) for n in range(3))
    with pytest.raises(StoreFull, match="nothing was written"):
        await store.commit(commit_of(Append("s/large", 0, large)))
    await database.write(lambda tables: tables.query("PRAGMA max_page_count = 100000"))
    await store.commit(commit_of(Append("s/large", 0, large)))
    await store.close()


async def test_another_process_sees_a_commit_at_once(path):
    writer = open_event_store(path, deployment="dep-1")
    reader = event_store(SqliteDatabase(path))
    subscription = reader.subscribe("d")
    for version in range(3):
        waiting = asyncio.create_task(take(subscription, version + 1))
        await asyncio.sleep(0.1)
        await writer.commit(commit_of(append("s/a/1", version)))
        begun = time.perf_counter()
        await waiting
        # 50 ms is the target, shown by the benchmark; a loaded machine gets ten times that here.
        assert time.perf_counter() - begun < 0.5
    await reader.close()
    await writer.close()


async def test_two_databases_on_one_file_take_turns(path):
    stores = [event_store(SqliteDatabase(path)) for _ in range(3)]

    async def write(store, name):
        for version in range(40):
            await store.commit(commit_of(append(name, version)))

    await asyncio.gather(*(write(store, f"s/a/{n}") for n, store in enumerate(stores)))
    log = await stores[0].read()
    assert len(log) == 120
    # Nobody waits until another is done: all three are well on their way in the middle of the log.
    half = [recorded.stream for recorded in log[:60]]
    assert min(half.count(f"s/a/{n}") for n in range(3)) > 5
    assert await verify_log(stores[1]) == []
    for store in stores:
        await store.close()


async def test_the_write_lock_dies_with_its_holder(path):
    await filled(path, 1)
    script = (
        "import sys, asyncio\n"
        "from distroml.statestore.sqlite import SqliteDatabase\n"
        "database = SqliteDatabase(__import__('pathlib').Path(sys.argv[1]))\n"
        "def hang(tables):\n"
        "    print('holding', flush=True)\n"
        "    __import__('time').sleep(60)\n"
        "asyncio.run(database.write(hang))\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"holding\n"
    store = event_store(await asyncio.to_thread(lambda: _opened_once_free(path, holder)))
    await store.commit(commit_of(append("s/a/1", 1)))
    await store.close()
    holder.stdout.close()
    assert holder.wait() == -signal.SIGKILL


def _opened_once_free(path, holder):
    threading.Timer(0.3, holder.kill).start()
    return SqliteDatabase(path)


async def test_a_write_that_waits_too_long_is_given_up_and_not_written_later(path, monkeypatch):
    monkeypatch.setattr("distroml.statestore.sqlite.writer.WRITE_TIMEOUT_S", 0.2)
    database = SqliteDatabase(path)
    store = event_store(database)
    release = threading.Event()
    hanging = asyncio.create_task(database.write(lambda tables: release.wait(20)))
    await asyncio.sleep(0.05)
    with pytest.raises(StoreDown, match="not written within"):
        await store.commit(commit_of(append("s/a/1", 0)))
    with pytest.raises(Exception, match="not written within"):
        await hanging
    release.set()
    monkeypatch.undo()
    await store.commit(commit_of(append("s/b/1", 0)))
    assert await store.version("s/a/1") == 0
    await store.close()


async def test_an_error_nobody_foresaw_does_not_end_the_writer(path):
    database = SqliteDatabase(path)
    store = event_store(database)

    def leave_a_mess(tables):
        tables.query("ROLLBACK")

    with pytest.raises(Exception, match="no such savepoint"):
        await database.write(leave_a_mess)
    await store.commit(commit_of(append("s/a/1", 0)))
    assert await verify_log(store) == []
    await store.close()


async def test_more_writes_than_may_wait_are_refused(path, monkeypatch):
    monkeypatch.setattr("distroml.statestore.sqlite.writer.MAX_WAITING", 3)
    database = SqliteDatabase(path)
    store = event_store(database)
    release = threading.Event()
    hanging = asyncio.create_task(database.write(lambda tables: release.wait(20)))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(store.commit(commit_of(append(f"s/a/{n}", 0)))) for n in range(4)]
    await asyncio.sleep(0.05)
    release.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [StoreFull]
    await hanging
    await store.close()


async def test_reads_do_not_wait_for_a_writer(path):
    await filled(path, 2)
    database = SqliteDatabase(path)
    store = event_store(database)
    release = threading.Event()
    writing = asyncio.create_task(database.write(lambda tables: release.wait(20)))
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(store.version("s/a/1"), 5) == 2
    release.set()
    await writing
    await store.close()


async def test_command_records_go_after_a_day_a_few_at_a_time(path):
    from distroml.eventstore import CommandRecord

    class Clock:
        boot = "b"
        ms = 1_000_000_000_000

        def monotonic(self):
            return 0.0

        def wall_ms(self):
            return self.ms

    clock = Clock()
    database = SqliteDatabase(path, clock=clock, sweep=False)
    store = event_store(database)

    async def accept(id):
        await store.commit(Commit(context=CONTEXT, command=CommandRecord(id, b"h", b"a")))

    async def rows():
        return await database.read(lambda tables: tables.query("SELECT count(*) FROM commands")[0][0])

    for n in range(10):
        await accept(f"old-{n}")
    clock.ms += 24 * 3600 * 1000 - 1
    assert await store.command("old-0") is not None
    clock.ms += 2
    assert await store.command("old-0") is None
    for n, left in enumerate((7, 4, 3, 4)):
        await accept(f"new-{n}")
        assert await rows() == left
    await accept("old-0")
    await store.close()
