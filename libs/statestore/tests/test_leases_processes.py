"""Leases among real processes that are stopped and killed."""

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from distroml.statestore import StateStoreError
from distroml.statestore.sqlite import open_state_store

HOLDER = """
import asyncio, sys
from distroml.statestore.sqlite import open_state_store

async def main():
    store = open_state_store(sys.argv[1])
    lease = await store.grant(2)
    await store.cas("holders/" + sys.argv[2], b"", expected=0, lease=lease)
    print("held", flush=True)
    while True:
        await asyncio.sleep(0.5)
        await store.keep_alive(lease)

asyncio.run(main())
"""


@pytest.fixture
def holders(tmp_path):
    path = tmp_path / "store.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLDER, path, str(n)], stdout=subprocess.PIPE) for n in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == b"held\n"
    yield path, processes
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


async def held(path):
    store = open_state_store(path)
    try:
        return [entry.key for entry in (await store.list("holders/")).entries]
    finally:
        await store.close()


def test_stopping_everybody_expires_nobody_and_a_dead_one_expires_alone(holders):
    path, processes = holders
    everyone = ["holders/0", "holders/1", "holders/2"]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    # Longer than the ttl, as a minute would be.
    asyncio.run(asyncio.sleep(3.5))
    for process in processes:
        process.send_signal(signal.SIGCONT)
    asyncio.run(asyncio.sleep(1.0))
    assert asyncio.run(held(path)) == everyone
    processes[1].kill()
    asyncio.run(asyncio.sleep(1.0))
    assert asyncio.run(held(path)) == everyone
    # When that is judged is up to a busy machine.
    until = time.monotonic() + 60
    while asyncio.run(held(path)) == everyone and time.monotonic() < until:
        time.sleep(0.1)
    assert asyncio.run(held(path)) == ["holders/0", "holders/2"]


async def test_changes_past_the_bound_are_compacted(tmp_path):
    from distroml.statestore import Compacted
    from distroml.statestore.sqlite import SqliteDatabase
    from distroml.statestore.store import TableStateStore

    store = TableStateStore(SqliteDatabase(tmp_path / "store.db", changes_kept=300))
    last = 0
    for n in range(0, 1200, 40):
        entries = await asyncio.gather(*(store.cas(f"k/{n + i}", b"", expected=0) for i in range(40)))
        last = entries[-1].revision
    with pytest.raises(Compacted):
        await anext(store.watch("k/", after=0))
    (change,) = await anext(store.watch("k/", after=last - 1))
    assert change.revision == last
    # A watch that looked past changes of other keys is not overtaken by their compaction.
    await store.close()
    with pytest.raises(StateStoreError):
        await store.get("k")
