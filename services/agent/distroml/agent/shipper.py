"""The process that ships this node's lines: told by its agent whose, and ended with it (`adapters.lines`).

`python -m distroml.agent.shipper`, settings by the agent's environment. It owns nothing: how far lines have arrived
lies beside the files, and is told to the agent more often.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from distroml import observability
from distroml.agent import node as nodes
from distroml.agent.adapters.delivery import Tell
from distroml.agent.adapters.lines import (
    ENCODE,
    Arrived,
    Delivered,
    Finish,
    Finished,
    Follow,
    Order,
    Place,
    Trouble,
    Word,
)
from distroml.agent.adapters.output import STREAMS, OutputTail
from distroml.agent.adapters.shipping import LineShipping
from distroml.agent.adapters.telemetry import TelemetryPush
from distroml.agent.settings import AgentSettings, host_name, log_store, read_settings
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.logstore.settings import ElasticSettings
from distroml.rpc import connect, launch

if TYPE_CHECKING:
    from elasticsearch import AsyncElasticsearch

    from distroml.logstore.elastic import Shipper

LOOK_S: Final = 0.25
SAVE_S: Final = 1.0
LAST: Final = 19
"""The nice value that is greatest."""

FLUSH_S: Final = 2.0
"""How long lines that wait may hold up the end, for each of their two ways."""

_KEPT_BYTES: Final = 32 << 20
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

_DECODE: Final = msgspec.json.Decoder(Order).decode


class Following:
    """The tails of this node, read in turn."""

    def __init__(self, shipping: LineShipping, arrivals: Arrivals, say: Callable[[Word], None]) -> None:
        self._shipping, self._arrivals, self._say = shipping, arrivals, say
        self._tails: dict[str, OutputTail] = {}
        self._ended: dict[str, OutputTail] = {}
        self._finishing: set[asyncio.Task[None]] = set()
        self._closed = False

    def told(self, order: Order) -> None:
        """The agent wants something."""
        match order:
            case Follow(folder, record, arrived):
                common, tell = pb.LogRecord.FromString(record), self._arrivals.of(folder)
                self._tails[folder] = OutputTail(Path(folder), common, self._shipping, tell, arrived)
            case Place(folder, rank, generation):
                if (tail := self._tails.get(folder)) is not None:
                    tail.place(rank, generation)
            case Finish(folder):
                task = asyncio.create_task(self._finish(folder))
                self._finishing.add(task)
                task.add_done_callback(self._finishing.discard)

    async def run(self) -> None:
        """Read until `close`, or cancelled."""
        saved_s = time.monotonic()
        while not self._closed:
            self._shipping.readers = len(self._tails) * len(STREAMS)
            for tail in list(self._tails.values()):
                tail.look()
            self._arrivals.tell()
            if time.monotonic() - saved_s >= SAVE_S:
                saved_s = time.monotonic()
                self.save()
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """Read to the end what has ended, and nothing else any more: the rest is another process's."""
        self._closed = True
        await asyncio.gather(*self._finishing, return_exceptions=True)
        self.save()

    def save(self) -> None:
        """Keep how far lines have arrived, and say which folders are done with."""
        # First, so that what is kept was counted.
        self._arrivals.tell()
        for tail in (*self._tails.values(), *self._ended.values()):
            tail.save()
        for folder in [folder for folder, tail in self._ended.items() if tail.arrived]:
            del self._ended[folder]
            self._say(Delivered(folder))

    async def _finish(self, folder: str) -> None:
        if (tail := self._tails.pop(folder, None)) is not None:
            await tail.finish()
            self._ended[folder] = tail
            self.save()
        self._say(Finished(folder))


@dataclass(slots=True)
class _Since:
    """What there is to be said of a folder."""

    at: dict[str, int] = field(default_factory=dict[str, int])
    counts: Counter[str] = field(default_factory=Counter[str])
    limited_bytes: int = 0


class Arrivals:
    """What became of lines, said to the agent with every look instead of with every batch."""

    def __init__(self, say: Callable[[Word], None]) -> None:
        self._say = say
        self._since: dict[str, _Since] = {}

    def of(self, folder: str) -> Callable[[str], Tell]:
        """For each stream of a folder, what to tell."""

        def of_stream(stream: str) -> Tell:
            def tell(at: int, counts: Mapping[str, int], limited_bytes: int) -> None:
                since = self._since.setdefault(folder, _Since())
                since.at[stream] = at
                since.counts.update(counts)
                since.limited_bytes += limited_bytes

            return tell

        return of_stream

    def tell(self) -> None:
        """Say what was not said yet."""
        since, self._since = self._since, {}
        for folder, one in since.items():
            # All of it in one word: it is heard, or it is not and all of these lines are sent again.
            self._say(Arrived(folder, one.at, dict(one.counts), one.limited_bytes))


async def serve() -> None:
    """Ship until the agent is gone."""
    _keep_memory()
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)

    def say(word: Word) -> None:
        # Nobody may be there to hear it: the end of the input says so as well.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.buffer.write(ENCODE(word) + b"\n")
            sys.stdout.buffer.flush()

    async with contextlib.AsyncExitStack() as closing, asyncio.TaskGroup() as tasks:
        channel = connect(settings.peer("telemetry"), settings.token, actor="agent")
        closing.push_async_callback(channel.close, None)
        # Apart from the agent's own: telemetry counts what each of them had to drop.
        push = TelemetryPush(channel, f"{nodes.node_id(settings.data / 'node')}.lines")
        arrivals = Arrivals(say)
        shipping = LineShipping(push, bytes_per_s=settings.log_bytes_per_s)
        following = Following(shipping, arrivals, say)
        flushes = [push.flush]
        # One that fails ends the process, which the agent starts again.
        background = [tasks.create_task(work()) for work in (push.run, following.run)]
        if (store := log_store(settings)) is not None:
            shipper, client = _to_store(store, settings, say)
            closing.push_async_callback(client.close)
            shipping.store = shipper
            background.append(tasks.create_task(shipper.run()))
            flushes.append(shipper.flush)
        orders = await _input()
        # Now: it begins as fast as anybody, and stands back once there is something to stand back with.
        _stand_back(max(settings.log_nice, os.getpriority(os.PRIO_PROCESS, 0)))
        async for line in orders:
            following.told(_DECODE(line))
        await following.close()
        await asyncio.gather(*(flush(FLUSH_S) for flush in flushes))
        following.save()
        for task in background:
            task.cancel()


def _to_store(
    store: ElasticSettings, settings: AgentSettings, say: Callable[[Word], None]
) -> tuple[Shipper, AsyncElasticsearch]:
    # The client comes with the extra `stack` and takes a while to import: only where it is used.
    from distroml.logstore import elastic

    client = elastic.connect(store)
    shipper = elastic.Shipper(
        client,
        store.namespace,
        host=host_name(),
        max_bytes=settings.log_buffer_bytes,
        tell=lambda why: say(Trouble(why)),
    )
    return shipper, client


def _keep_memory() -> None:
    """Megabytes that one request took serve the next.

    Given back each time, they cost a page fault for every 4 KB: more than all that is done to the lines in them.
    """
    # Of glibc, mallopt(3); elsewhere memory is kept or not as it is there.
    with contextlib.suppress(AttributeError):
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, _KEPT_BYTES)


def _stand_back(nice: int) -> None:
    """Give way to everybody of a lower nice value, in this session and in others; at `LAST` run where nobody else does.

    A rank that wakes then goes to the processor that this process is on as if that were free: it does not crowd the
    other ranks instead.
    """
    # Linux has one for each thread; those to come take over their maker's.
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, int(thread), nice)
            if nice >= LAST:
                os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
    # Where sessions share processors as groups it counts within one only; each group has a value, too (sched(7)).
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


async def _input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    launch(serve)
