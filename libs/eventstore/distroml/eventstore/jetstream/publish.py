"""Publishing several messages at once, in order, and knowing of each whether it is stored.

The client library's own pipelined publish never ends its future where the server refuses a message. Refusals are what
the log's guard consists of, so acknowledgements are read here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from distroml.statestore.failpoint import hit

NO_STREAM = 503
"""Code of `Refused` where nobody stores the subject; JetStream's own codes begin at 10,000."""


class Refused(Exception):
    """The server did not store a message; `code` is JetStream's `err_code`, or `NO_STREAM`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{code}: {description}")
        self.code, self.description = code, description


@dataclass(frozen=True, slots=True)
class Message:
    """What to publish."""

    subject: str
    data: bytes
    headers: Mapping[str, str]


class _Error(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct, frozen=True):
    seq: int = 0
    error: _Error | None = None


_ack = msgspec.json.Decoder(_Ack)


async def publish(client: Client, messages: Sequence[Message], timeout_s: float) -> list[int]:
    """Publish all, and return their sequences once every one is stored; `timeout_s` is for each to follow the last.

    Raises:
        Refused: one was not; those before it may be stored.
        TimeoutError, nats.errors.Error: nothing is known of some.
    """
    loop = asyncio.get_running_loop()
    inbox = client.new_inbox()
    async with asyncio.timeout(timeout_s) as patience:
        # A disk that syncs slowly is no server that went silent.
        answers = _Answers(len(messages), lambda: patience.reschedule(loop.time() + timeout_s))
        subscription = await client.subscribe(  # pyright: ignore[reportUnknownMemberType]
            f"{inbox}.*", cb=answers.take
        )
        try:
            for nth, message in enumerate(messages):
                hit("jetstream.publish")
                await client.publish(
                    message.subject, message.data, reply=f"{inbox}.{nth}", headers=dict(message.headers)
                )
            return await answers.complete
        finally:
            answers.complete.cancel()
            if not client.is_closed:
                await subscription.unsubscribe()


class _Answers:
    """The acknowledgements of one batch: all, or the first refusal."""

    def __init__(self, count: int, progress: Callable[[], None]) -> None:
        self._progress = progress
        self._sequences = [0] * count
        self._missing = count
        self.complete: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def take(self, message: Msg) -> None:
        if self.complete.done():
            return
        if (message.headers or {}).get("Status") == str(NO_STREAM):
            self.complete.set_exception(Refused(NO_STREAM, f"no stream takes {message.subject}"))
            return
        ack = _ack.decode(message.data)
        if ack.error is not None:
            self.complete.set_exception(Refused(ack.error.err_code, ack.error.description))
            return
        nth = int(message.subject.rpartition(".")[2])
        self._missing -= self._sequences[nth] == 0
        self._sequences[nth] = ack.seq
        self._progress()
        if not self._missing:
            self.complete.set_result(self._sequences)
