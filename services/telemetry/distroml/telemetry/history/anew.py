"""History made anew by a process beside the service: seen by nobody until it takes the old one's place, whole."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Self

from distroml.events import Recorded
from distroml.observability import logger
from distroml.telemetry.adapters.facts import job_of
from distroml.telemetry.history.building import (
    LENGTH_BYTES,
    Begin,
    Failed,
    Finish,
    Fold,
    Message,
    Where,
    answer_of,
    length_of,
    packed,
)
from distroml.telemetry.history.folding import event_row
from distroml.telemetry.history.port import HistoryAway, NotWritten

log = logger(__name__)

_AHEAD = 16
"""Pages that wait for the process at most: it takes a second to begin, and need not wait for the log then."""

_PIPE_BYTES = 1 << 20
_BUFFER_BYTES = 64 << 20

_job_of = lru_cache(maxsize=65_536)(job_of)


class AnewByProcess:
    """`Anew`. Enter it before use; leaving it ends the process, however far it is."""

    def __init__(self, where: Where, *, max_events: int, replace: Callable[[], Awaitable[None]]) -> None:
        """Nothing is begun yet.

        Args:
            where: an empty place.
            max_events: of a job that stay.
            replace: puts what was made there into the old history's place.
        """
        self._begin, self._replace = Begin(where, max_events), replace
        self._process: asyncio.subprocess.Process | None = None
        self._unanswered: deque[Message] = deque()
        self._skipped = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "distroml.telemetry.history.builder",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # What a terminal interrupts is the service, which ends this one.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        transport = self._process.stdin.transport
        # What waits is bounded by the pages ahead; it goes out while the next one is read.
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        with suppress(OSError):
            # A process without privileges may have used up its share of large pipes: small ones do, too.
            fcntl.fcntl(transport.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        await self._say(self._begin)
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None, "it was entered"
        if process.returncode is None:
            process.kill()
        # Both pipes are read and closed, whatever is still in them.
        await process.communicate()

    async def add(self, events: Sequence[Recorded]) -> None:
        """See the port."""
        rows = [
            event_row(job, recorded) for recorded in events if recorded.public and (job := _job_of(recorded.stream))
        ]
        await self._say(Fold(rows, str(events[-1].position)))
        while len(self._unanswered) > _AHEAD:
            await self._answered()

    async def replace(self) -> None:
        """See the port."""
        await self._say(Finish())
        while self._unanswered:
            await self._answered()
        if self._skipped:
            log.info("events without a meaning that this release can read", count=self._skipped)
        await self._replace()

    async def _say(self, message: Message) -> None:
        assert self._process is not None, "it is entered"
        assert self._process.stdin is not None
        self._unanswered.append(message)
        try:
            self._process.stdin.write(packed(message))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            # It has ended, and its last answer says why.
            while True:
                await self._answered()

    async def _answered(self) -> None:
        """Take the next answer; raises where it is that the process cannot go on, or there is none."""
        assert self._process is not None, "it is entered"
        assert self._process.stdout is not None
        try:
            length = await self._process.stdout.readexactly(LENGTH_BYTES)
            answer = answer_of(await self._process.stdout.readexactly(length_of(length)))
        except asyncio.IncompleteReadError:
            status = await self._process.wait()
            raise NotWritten(
                f"the process that makes history anew has ended with status {status}; what it said stands in the"
                " service's output, and a negative status is a signal: see that there is memory for it"
            ) from None
        if isinstance(answer, Failed):
            raise (HistoryAway if answer.away else NotWritten)(answer.why)
        self._unanswered.popleft()
        self._skipped += answer.skipped
