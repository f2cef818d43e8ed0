"""Retiring on a real etcd beyond the port's promises: kills, races over the archive, an archive that is away."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest

from distroml.eventstore import (
    Append,
    Fenced,
    Guard,
    NotSealable,
    Part,
    Sealed,
    StoreDamaged,
    StoreDown,
    WrongExpectedVersion,
)
from distroml.eventstore.conformance import append, commit_of
from distroml.eventstore.port import state_prefix
from distroml.objectstore import ObjectStoreDown
from distroml.objectstore.filesystem import open_object_store as open_folder
from distroml.objectstore.memory import open_object_store
from distroml.statestore.etcd.messages import RangeRequest
from libs.eventstore.tests.on_etcd import deployment

CHILD = """
import asyncio, sys
from types import SimpleNamespace
from distroml.objectstore.filesystem import open_object_store
from distroml.statestore import failpoint
from libs.eventstore.tests.on_etcd import deployment

async def main(port, id, folder):
    async with deployment(SimpleNamespace(port=port), id=id, objects=open_object_store(folder)) as stores:
        await stores.events.retire("s/a/1", version=2, keys=("fences/1",))
    print(failpoint.hits())

asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
"""


class Objects:
    """Another object store, away while `down`; `between` runs once, at the next look at retired streams."""

    def __init__(self, loop=None):
        self.inner, self.loop, self.down, self.between = open_object_store(), loop, False, None

    def __getattr__(self, name):
        if self.down:
            raise ObjectStoreDown("no route")
        return getattr(self.inner, name)

    def list(self, prefix="", **keywords):
        found = self.__getattr__("list")(prefix, **keywords)
        if prefix.startswith("retired/") and (between := self.between):
            self.between = None
            asyncio.run_coroutine_threadsafe(between(), self.loop).result(20)
        return found


async def begin(stores, stream, version=1):
    """A stream of some events, with its version in a part."""
    part = Part(state_prefix(stream) + "@", b"%d" % version)
    await stores.events.commit(commit_of(append(stream, 0, version), parts=(part,)))
    await stores.seal()


async def test_killed_anywhere_a_stream_is_retired_whole_or_not_at_all(etcd, tmp_path):
    parts = {"state/s/a/1:@": b"2", "state/s/a/1:core": b"x", "fences/1": b"7"}

    async def outcome(nth):
        objects = open_folder(tmp_path / nth)
        async with deployment(etcd, objects=objects) as stores:
            written = tuple(Part(key, value) for key, value in parts.items())
            await stores.events.commit(commit_of(append("s/a/1", 0, 2), parts=written))
            await stores.seal()
            environment = os.environ | {"DISTROML_FAILPOINT": f"etcd.retire:{nth}"}
            child = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", CHILD, str(etcd.port), stores.events.log_id, str(tmp_path / nth)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert child.returncode == (0 if nth == "count" else -signal.SIGKILL), child.stderr
            live, streams = (await stores.events.parts(""))[0], list(await stores.events.streams())
            sealed = await stores.events.sealed("s/a/1")
            assert (live, streams, sealed) in ((parts, ["s/a/1"], None), ({}, [], Sealed(2, parts)))
            assert await stores.events.version("s/a/1") == 2
            # Whoever tries again ends it, and a kill after the put leaves no second object behind.
            await stores.events.retire("s/a/1", version=2, keys=("fences/1",))
            assert await stores.events.sealed("s/a/1") == Sealed(2, parts)
            assert len(objects.list("retired/")) == 1
            return sealed is not None, int(child.stdout or 0)

    done, points = await outcome("count")
    assert done
    outcomes = await asyncio.gather(*(outcome(f"kill:{n}") for n in range(1, points + 1)))
    # Before the put, between the put and the transaction, and after that.
    assert [retired for retired, _ in outcomes] == [False, False, True]


async def test_what_the_archive_said_holds_only_while_nothing_is_retired(etcd):
    objects = Objects(asyncio.get_running_loop())
    async with deployment(etcd, objects=objects) as one, deployment(etcd, id=one.events.log_id, objects=objects) as two:
        prefix = state_prefix("s/a/1")
        await begin(one, "s/a/1")
        await one.events.retire("s/a/1", version=1)

        async def move_on():
            await two.events.commit(commit_of(append("s/a/1", 1), parts=(Part(prefix + "@", b"2"),)))
            await two.seal()
            await two.events.retire("s/a/1", version=2)

        # Read at version 1, it comes back elsewhere, goes on and is retired again, before what was decided is sent.
        objects.between = move_on
        with pytest.raises(WrongExpectedVersion) as caught:
            await one.events.commit(commit_of(append("s/a/1", 1), parts=(Part(prefix + "@", b"lost"),)))
        assert caught.value.actual == 2
        assert objects.between is None
        assert await one.events.sealed("s/a/1") == Sealed(2, {prefix + "@": b"2"})

        names = (f"s/n/{n}" for n in range(1000))
        new = next(name for name in names if one.keys.retired(name) == one.keys.retired("s/a/1"))

        async def begin_and_end():
            await begin(two, new)
            await two.events.retire(new, version=1)

        objects.between = begin_and_end
        with pytest.raises(WrongExpectedVersion) as caught:
            await one.events.commit(commit_of(append(new, 0)))
        assert caught.value.actual == 1
        assert objects.between is None


async def test_what_changes_while_a_stream_is_on_its_way_out_is_seen(etcd):
    objects = Objects(asyncio.get_running_loop())
    async with deployment(etcd, objects=objects) as one, deployment(etcd, id=one.events.log_id, objects=objects) as two:
        leader = await one.state.cas("leader", b"me", expected=0)
        for stream in ("s/a/1", "s/a/2", "s/b/1"):
            await begin(one, stream)

        def change(append, *parts):
            async def change():
                await two.events.commit(commit_of(append, parts=parts))

            return change

        # Parts are sealed as they are mended meanwhile, and without those that are taken away.
        objects.between = change(append("s/a/1", 1, 0), Part("state/s/a/1:+", b"mended"))
        await one.events.retire("s/a/1", version=1)
        assert await one.events.sealed("s/a/1") == Sealed(1, {"state/s/a/1:@": b"1", "state/s/a/1:+": b"mended"})
        objects.between = change(append("s/a/2", 1, 0), Part("state/s/a/2:@", None))
        await one.events.retire("s/a/2", version=1)
        assert await one.events.sealed("s/a/2") == Sealed(1, {})

        objects.between = change(append("s/b/1", 1))
        with pytest.raises(WrongExpectedVersion, match="is at version 2"):
            await one.events.retire("s/b/1", version=1)
        await one.seal()

        async def take_over():
            await two.state.cas("leader", b"you", expected=leader.revision)

        objects.between = take_over
        with pytest.raises(Fenced):
            await one.events.retire("s/b/1", version=2, guards=(Guard("leader", revision=leader.revision),))
        objects.between = change(Append("s/b/1", 2, ()), Part("fences/1", b"1"))
        await one.events.retire("s/b/1", version=2, keys=("fences/1",))
        assert await one.events.sealed("s/b/1") == Sealed(2, {"state/s/b/1:@": b"1", "fences/1": b"1"})
        assert objects.between is None
        assert (await one.events.parts(""))[0] == {"leader": b"you"}


async def test_only_streams_that_may_have_been_retired_need_the_archive(etcd):
    objects = Objects()
    async with deployment(etcd, objects=objects) as stores:
        await begin(stores, "s/a/1")
        await begin(stores, "s/b/1")
        await stores.events.commit(commit_of(append("s/b/1", 1)))
        with pytest.raises(NotSealable, match="try again in a minute"):
            await stores.events.retire("s/b/1", version=2)
        await stores.events.retire("s/a/1", version=1)
        objects.down = True
        with pytest.raises(StoreDown, match="no route"):
            await stores.events.retire("s/b/1", version=2)
        same = [f"s/n/{n}" for n in range(1000) if stores.keys.retired(f"s/n/{n}") == stores.keys.retired("s/a/1")]
        others = [f"s/n/{n}" for n in range(1000) if stores.keys.retired(f"s/n/{n}") != stores.keys.retired("s/a/1")]
        for stream, expected in ((same[0], 0), (same[1], 0), ("s/a/1", 1), ("s/a/1", 0)):
            with pytest.raises(StoreDown, match=f"whether {stream} was retired before cannot be told now"):
                await stores.events.commit(commit_of(append(stream, expected)))
        with pytest.raises(StoreDown, match="no route"):
            await stores.events.version("s/a/1")
        # What is live, and what is new where nothing was retired, needs no archive.
        await stores.events.commit(commit_of(append("s/b/1", 2), append(others[0], 0)))
        with pytest.raises(WrongExpectedVersion):
            await stores.events.commit(commit_of(append(others[1], 3)))
        objects.down = False
        await stores.events.commit(commit_of(append(same[0], 0)))

        (info,) = objects.inner.list("retired/")
        whole = objects.inner.get(info.key)
        objects.inner.put(info.key, whole[:-1])
        with pytest.raises(StoreDamaged, match="do not have the hash in its name"):
            await stores.events.sealed("s/a/1")
        objects.inner.put(info.key, whole)
        await stores.events.commit(commit_of(append("s/a/1", 1)))
        assert (await stores.events.parts("state/s/a/1"))[0] == {"state/s/a/1:@": b"1"}
        counted = RangeRequest(key=stores.keys.retired("s/a/1"), count_only=True)
        assert (await stores.client.range(counted)).count == 1


async def test_many_who_begin_go_on_and_retire_lose_and_double_nothing(etcd):
    """Three processes' worth of writers on few streams that share few keys; every success is counted once."""
    objects, told, chosen = open_object_store(), [], random.Random(7)
    streams = [f"s/{kind}/{n}" for kind in "ab" for n in range(3)]
    async with AsyncExitStack() as opened:
        first = await opened.enter_async_context(deployment(etcd, objects=objects, relayed=True))
        id = first.events.log_id
        others = [await opened.enter_async_context(deployment(etcd, id=id, objects=objects)) for _ in range(2)]

        async def work(stores, steps):
            for stream, retiring in steps:
                version = await stores.events.version(stream)
                try:
                    if retiring:
                        await stores.events.retire(stream, version=max(version, 1))
                    else:
                        part = Part(state_prefix(stream) + "@", b"%d" % (version + 1))
                        await stores.events.commit(commit_of(append(stream, version), parts=(part,)))
                        told.append((stream, version + 1))
                except (WrongExpectedVersion, NotSealable):
                    continue

        steps = [[(chosen.choice(streams), chosen.random() < 0.5) for _ in range(40)] for _ in range(6)]
        await asyncio.gather(*(work((first, *others)[n % 3], some) for n, some in enumerate(steps)))
        await first.seal()
        assert len(told) == len(set(told)) > 20
        events = await others[0].events.read(limit=1000)
        assert sorted((one.stream, one.version) for one in events) == sorted(told)
        for stream in streams:
            version = sum(name == stream for name, _ in told)
            assert await others[0].events.version(stream) == version
            if version:
                await others[1].events.retire(stream, version=version)
                parts = {state_prefix(stream) + "@": b"%d" % version}
                assert await first.events.sealed(stream) == Sealed(version, parts)
        assert (await first.events.parts(""))[0] == {}
        assert list(await first.events.streams()) == []
