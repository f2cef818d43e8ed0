"""Reading a JetStream stream by sequences, without a consumer.

A batched direct get is one question with one bounded answer, told complete by its last message. So there is nothing on
the server that could expire, stay silent after a restart, or be left behind by a reader that died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoRespondersError

from distroml.eventstore.port import StoreDown
from distroml.eventstore.relay.port import LogMoved

MAX_BATCH_BYTES = 4 * 1024 * 1024
SEQUENCE = "Nats-Sequence"
_PROGRESS = 256
_STATUS = "Status"
_DESCRIPTION = "Description"
_LAST_SEQUENCE = "Nats-Last-Sequence"
_END, _NOT_FOUND, _NO_STREAM = "204", "404", "503"


@dataclass(frozen=True, slots=True)
class Query:
    """Messages from a sequence on.

    Attributes:
        sequence: of the first one that may come.
        batch: at most so many.
        subject: only those that it covers.
    """

    sequence: int
    batch: int
    subject: str

    def encode(self) -> bytes:
        """As the server wants it."""
        asked = {
            "seq": self.sequence,
            "batch": self.batch,
            "max_bytes": MAX_BATCH_BYTES,
            "next_by_subj": self.subject,
        }
        return msgspec.json.encode(asked)


async def fetch(client: Client, stream: str, query: Query, timeout_s: float) -> list[Msg]:
    """The messages, complete as far as they go; none where there is no such message.

    Raises:
        LogMoved: there is no such stream.
        StoreDown: no answer, or not a whole one, or nothing of it for `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    inbox = client.new_inbox()
    try:
        async with asyncio.timeout(timeout_s) as patience:
            answer = _Answer(lambda: patience.reschedule(loop.time() + timeout_s))
            subscription = await client.subscribe(  # pyright: ignore[reportUnknownMemberType]
                inbox, cb=answer.take
            )
            try:
                await client.publish(f"$JS.API.DIRECT.GET.{stream}", query.encode(), reply=inbox)
                return await answer.complete
            finally:
                if not client.is_closed:
                    await subscription.unsubscribe()
    except NoRespondersError as error:
        raise LogMoved(f"NATS has no stream {stream}") from error
    except TimeoutError as error:
        raise StoreDown(f"NATS did not answer within {timeout_s:g} s while stream {stream} was read") from error
    except Error as error:
        raise StoreDown(f"NATS failed while stream {stream} was read: {error or type(error).__name__}") from error


class _Answer:
    """What came of one answer; `progress` is called once in a while as it comes."""

    def __init__(self, progress: Callable[[], None]) -> None:
        self._progress = progress
        self._messages: list[Msg] = []
        self.complete: asyncio.Future[list[Msg]] = asyncio.get_running_loop().create_future()

    async def take(self, message: Msg) -> None:
        if self.complete.done():
            return
        headers = message.headers or {}
        if _STATUS not in headers:
            self._messages.append(message)
            if len(self._messages) % _PROGRESS == 0:
                self._progress()
            return
        status = headers[_STATUS]
        if status == _NO_STREAM:
            self.complete.set_exception(NoRespondersError())
        elif status == _NOT_FOUND:
            self.complete.set_result([])
        elif status != _END:
            why = f"{status} {headers.get(_DESCRIPTION, '')}"
            self.complete.set_exception(StoreDown(f"NATS refused to read a stream: {why}"))
        elif self._messages and (self._messages[-1].headers or {}).get(SEQUENCE) != headers.get(_LAST_SEQUENCE):
            self.complete.set_exception(StoreDown("a part of NATS's answer was lost on the way: read again"))
        else:
            self.complete.set_result(self._messages)
