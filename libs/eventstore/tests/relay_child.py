"""A relay as a process of its own, for tests that kill and stop it: over files, a lease in SQLite, and a real NATS.

    python -m libs.eventstore.tests.relay_child FOLDER PORT [FAILPOINT PASSES]

It ends when everything that the outbox will ever have is published, sealed and trimmed.
"""

import asyncio
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from deploy.stack.nats import PASSWORD, USER
from distroml.eventstore import StoreDown
from distroml.eventstore.jetstream import JetStreamLog, NatsConnection, NatsSettings
from distroml.eventstore.relay import OutboxTrimmed
from distroml.eventstore.relay.core import SealPolicy
from distroml.eventstore.relay.lease import under_lease
from distroml.eventstore.relay.relay import Relay
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore.filesystem import open_object_store
from distroml.statestore import failpoint
from distroml.statestore.sqlite import open_state_store
from libs.eventstore.tests.log_parts import LOG, history

TTL_S = 1


class FileOutbox:
    """Commits known to all beforehand; how many there are, and up to where they were trimmed, stands in files."""

    def __init__(self, folder, commits):
        self.folder, self.commits = Path(folder), commits

    def number(self, name):
        path = self.folder / name
        return int(path.read_text()) if path.exists() else 0

    def write(self, name, number):
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.write_text(str(number))
        temporary.rename(self.folder / name)

    @property
    def trimmed(self):
        return self.number("trimmed")

    def told(self, *, after, limit):
        return None

    async def pending(self, *, after, limit):
        if after < self.trimmed:
            raise OutboxTrimmed(after, self.trimmed)
        return [one for one in self.commits[: self.number("count")] if one.revision > after][:limit]

    async def wait(self, *, after, timeout_s):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not await self._has(after):
            await asyncio.sleep(0.01)

    async def trim(self, *, up_to):
        self.write("trimmed", max(self.trimmed, up_to))

    async def _has(self, after):
        with suppress(OutboxTrimmed):
            return bool(await self.pending(after=after, limit=1))
        return True


def parts(folder, connection):
    """What the relay of a folder works on."""
    outbox = FileOutbox(folder, history(int((Path(folder) / "total").read_text())))
    log = JetStreamLog(connection, LOG, keep_bytes=1 << 26)
    return outbox, log, SegmentLog(open_object_store(Path(folder) / "objects"), LOG)


def settings(port):
    return NatsSettings(servers=(f"nats://127.0.0.1:{port}",), user=USER, password=PASSWORD, timeout_s=2.0)


async def relay(folder, port, holder):
    connection = NatsConnection(settings(port))
    while True:
        try:
            await connection.connect()
            break
        except StoreDown:
            connection = NatsConnection(settings(port))
    outbox, log, segments = parts(folder, connection)
    state = open_state_store(Path(folder) / "state.db")

    async def work():
        print("working", flush=True)
        policy = SealPolicy(bytes=4000, age_s=0.05)
        running = asyncio.create_task(Relay(outbox, log, segments, reload_bytes=1 << 20, policy=policy).run())
        while outbox.trimmed < outbox.commits[-1].revision:
            await asyncio.sleep(0.02)
            if running.done():
                running.result()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    await under_lease(state, "leases/relay", holder=holder, ttl_s=TTL_S, work=work)
    await state.close()
    await connection.close()
    print(failpoint.hits(), flush=True)


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], int(sys.argv[2]), f"relay-{os.getpid()}"))
