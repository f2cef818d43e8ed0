"""SIGKILL between every two statements: each commit is there whole or not at all."""

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from distroml.eventstore import Append, Commit
from distroml.eventstore.conformance import CONTEXT, append, commit_of
from distroml.eventstore.sqlite import open_event_store, verify_log
from distroml.statestore.sqlite.schema import _TABLES

CHILD = """
import asyncio, sys
from distroml.eventstore import CommandRecord, Commit, Guard, Part
from distroml.events import Context, NewEvent
from distroml.eventstore import Append
from distroml.eventstore.sqlite import open_event_store
from distroml.statestore import failpoint

CONTEXT = Context(deployment="d", project="p", actor="a", causation_id="c", correlation_id="c", time_ms=1)

def append(stream, expected, count=1):
    event = NewEvent(id="e", type="t", schema=1, public=False, data=b"{}")
    return Append(stream, expected, (event,) * count)

async def main():
    store = open_event_store(sys.argv[1], deployment="dep-1")
    await store.commit(Commit(
        context=CONTEXT,
        appends=(append("s/a/1", await store.version("s/a/1"), 2), append("s/b/1", 0)),
        parts=(Part("p/1", b"new"), Part("p/2", None), Part("p/3", b"new")),
        guards=(Guard("p/1", value=b"old"),),
        command=CommandRecord("cmd-1", b"h", b"a"),
    ))
    print(failpoint.hits())

asyncio.run(main())
"""


def child(path, failpoint):
    environment = os.environ | {"DISTROML_FAILPOINT": failpoint}
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], env=environment, capture_output=True, text=True, timeout=30
    )


async def prepared(path):
    from distroml.eventstore import Part

    store = open_event_store(path, deployment="dep-1")
    await store.commit(commit_of(append("s/a/1", 0), parts=(Part("p/1", b"old"), Part("p/2", b"old"))))
    await store.close()


async def outcome(path):
    """What a reopened store shows: "old", "new", or a mixture, which is a failure."""
    store = open_event_store(path)
    assert await verify_log(store) == []
    shown = (
        [(recorded.stream, recorded.version) for recorded in await store.read()],
        await store.version("s/a/1"),
        await store.version("s/b/1"),
        dict((await store.parts("p/"))[0]),
        await store.command("cmd-1") is not None,
    )
    # The store goes on: the lock died with its holder, and the next revision is free.
    await store.commit(Commit(context=CONTEXT, appends=(Append("s/c/1", 0, append("x", 0).events),)))
    await store.close()
    old = ([("s/a/1", 1)], 1, 0, {"p/1": b"old", "p/2": b"old"}, False)
    events = [("s/a/1", 1), ("s/a/1", 2), ("s/a/1", 3), ("s/b/1", 1)]
    new = (events, 3, 1, {"p/1": b"new", "p/3": b"new"}, True)
    return {repr(old): "old", repr(new): "new"}.get(repr(shown), f"a mixture: {shown}")


def test_a_killed_commit_is_whole_or_absent_at_every_statement(tmp_path):
    asyncio.run(prepared(tmp_path / "count.db"))
    counted = child(tmp_path / "count.db", "sqlite.statement:count")
    points = int(counted.stdout)
    assert points > 10

    def killed(nth):
        path = tmp_path / f"{nth}.db"
        asyncio.run(prepared(path))
        assert child(path, f"sqlite.statement:kill:{nth}").returncode == -signal.SIGKILL
        return asyncio.run(outcome(path))

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(killed, range(1, points + 1)))
    # Only the point after COMMIT shows it; before that, nothing of it does.
    assert outcomes == ["old"] * (points - 1) + ["new"]


def test_a_store_killed_while_it_is_made_is_made_by_the_next(tmp_path):
    points = _TABLES.count(";") + 3

    def killed(nth):
        path = tmp_path / f"{nth}.db"
        assert child(path, f"sqlite.create:kill:{nth}").returncode == -signal.SIGKILL

        async def use():
            store = open_event_store(path, deployment="dep-1")
            await store.commit(commit_of(append("s/a/1", 0)))
            await store.close()

        asyncio.run(use())

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(killed, range(1, points + 1, 2)))
    assert child(tmp_path / "none.db", f"sqlite.create:kill:{points + 1}").returncode != -signal.SIGKILL
