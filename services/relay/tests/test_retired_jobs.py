"""etcd stays as small as it is, however many jobs have ended: 200 of them here, 10,000 in `benchmarks/etcd_size.py`.

What jobs write is the benchmark's; the log is in JetStream and segments, by the relay as it is deployed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from benchmarks.etcd_size import PARTS
from distroml.events import Context, NewEvent, fresh_id
from distroml.eventstore import Append, CommandRecord, Commit, Guard, Part
from distroml.eventstore.port import state_prefix
from distroml.relay.service import install
from distroml.relay.settings import RelaySettings
from distroml.rpc import Service, Stores, open_stores
from distroml.rpc.retirement import Retirement, Seen

ROUNDS, JOBS, CALLERS, COMMITS = 4, 50, 16, 1
SCHEDULER, *OTHERS = PARTS
WITHIN_S = 60.0


async def test_the_live_keys_of_50_finished_jobs_are_those_of_200(settings: RelaySettings) -> None:
    async with open_stores(settings) as stores, Service(settings) as service:
        assert stores.servers is not None
        install(service, settings, stores.servers)
        await service.start()
        leader = await stores.state.cas("leader", b"test", expected=0)
        guard = Guard("leader", revision=leader.revision)
        # As the services have them: one owner decides when a job is over, the others follow.
        retirements = [Retirement(stores.events, SCHEDULER, _over, after_s=1)]
        retirements += [Retirement(stores.events, kind, _over, after_s=1, follows=SCHEDULER) for kind in OTHERS]

        left: list[Counter[str]] = []
        for n in range(ROUNDS):
            numbers = iter(range(n * JOBS, (n + 1) * JOBS))
            await asyncio.gather(*(_live_and_end(stores, numbers) for _ in range(CALLERS)))
            async with asyncio.timeout(WITHIN_S):
                # In the log and in segments, without which nothing retires.
                while await stores.servers.events.outbox.count():
                    await asyncio.sleep(0.02)
            for one in retirements:
                assert not await one.once(guard)
            left.append(await _keys(stores, settings.deployment))
        # Answers to commands end with their leases, after a day.
        assert [one.pop("command") for one in left] == [(n + 1) * JOBS for n in range(ROUNDS)]
        assert left[0] == left[-1], left
        assert not {"state", "stream", "fences"} & left[-1].keys()
        # All of it is still to be had.
        for kind in PARTS:
            assert await stores.events.version(_stream(kind, 0)) == COMMITS


def _stream(kind: str, number: int) -> str:
    return f"{kind}job-{number:024}"


async def _over(stream: str) -> Seen:
    """What a service finds of a job that ended long ago."""
    fence = (f"fences/{stream.rpartition('/')[2]}",) if stream.startswith("rendezvous") else ()
    return Seen(COMMITS, due_ms=1, keys=fence)


async def _live_and_end(stores: Stores, numbers: Iterator[int]) -> None:
    """All commits of each job, the first with a command, whose answer is kept."""
    for number in numbers:
        for version in range(COMMITS):
            for kind, sizes in PARTS.items():
                stream = _stream(kind, number)
                event = NewEvent(id=f"{stream}-{version}", type="test.Progressed", schema=1, public=True, data=b"x")
                parts = [Part(state_prefix(stream) + name, b"x" * size) for name, size in sizes.items()]
                if kind.startswith("rendezvous"):
                    parts.append(Part(f"fences/job-{number:024}", b"%d" % version))
                first = kind == SCHEDULER and version == 0
                command = CommandRecord(fresh_id("cmd"), b"hash", b"answer") if first else None
                context = Context(
                    deployment=stores.events.log_id,
                    project="p",
                    actor="ann",
                    causation_id="c",
                    correlation_id="r",
                    time_ms=1,
                )
                append = Append(stream, version, (event,))
                await stores.events.commit(
                    Commit(context=context, appends=(append,), parts=tuple(parts), command=command)
                )


async def _keys(stores: Stores, deployment: str) -> Counter[str]:
    """How many keys of each kind the deployment has in etcd."""
    assert stores.servers is not None
    found, _ = await stores.servers.state.client.range_all(f"{deployment}/".encode(), keys_only=True)
    words = [kv.key.decode().removeprefix(f"{deployment}/").split("/") for kv in found]
    # Parts and fences lie among the state store's keys.
    return Counter(one[1] if one[0] == "key" else one[0] for one in words)
