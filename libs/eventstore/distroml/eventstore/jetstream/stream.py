"""The JetStream stream that is a deployment's log: made, checked to be ours, and its publisher's guard.

Every publish states the sequence after which it belongs (`Nats-Expected-Last-Sequence`) on a subject that only this
incarnation of the stream stores: whatever a replaced relay still publishes is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.js import JetStreamManager
from nats.js.api import Header, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import NotFoundError

from distroml.events import Recorded
from distroml.eventstore.jetstream import subjects
from distroml.eventstore.jetstream.connection import NatsConnection
from distroml.eventstore.jetstream.direct import SEQUENCE, Query, fetch
from distroml.eventstore.jetstream.errors import NO_MESSAGE, StreamExists, translated
from distroml.eventstore.jetstream.publish import Message, publish
from distroml.eventstore.log import Place
from distroml.eventstore.port import StoreDamaged, StoreDown
from distroml.eventstore.relay.core import end_of
from distroml.eventstore.relay.port import LogMoved, Tail
from distroml.eventstore.wire import decode_event, encode_event

PREVIOUS = "Distroml-Previous"
"""Header: the place of the event before this one in the log, as `revision.index`."""

LAST = "Distroml-Last"
"""Header: this event is the last one of its commit."""

IN_FLIGHT = 256
_OWNER = "distroml.log"
_INCARNATION = "distroml.incarnation"


@dataclass(frozen=True, slots=True)
class Stored:
    """An event in the stream.

    Attributes:
        recorded: the event.
        sequence: its number in the stream.
        previous: the place of the event before it in the log.
        last: whether it is the last one of its commit.
    """

    recorded: Recorded
    sequence: int
    previous: Place
    last: bool

    @property
    def place(self) -> Place:
        """Its place."""
        return self.recorded.position.revision, self.recorded.position.index

    @property
    def through(self) -> Place:
        """Up to where one has read who has read it: the end of its commit where it is the last one."""
        return end_of(self.recorded.position.revision) if self.last else self.place


class JetStreamLog:
    """`Log` on JetStream. See the port for what it promises."""

    def __init__(self, connection: NatsConnection, log_id: str, *, keep_bytes: int, replicas: int = 1) -> None:
        """Nothing is asked of the server yet.

        Args:
            connection: where; a connected one.
            log_id: the deployment's id.
            keep_bytes: past this size the oldest events leave the stream; segments keep them.
            replicas: of the stream, in a cluster.
        """
        self.log_id = log_id
        self.name = subjects.stream_name(log_id)
        self.connection = connection
        self._keep_bytes, self._replicas = keep_bytes, replicas

    async def tail(self) -> Tail:
        """Where the log ends now; the stream is made where there is none.

        Raises:
            StoreDown: NATS did not answer, or the stream is another deployment's.
        """
        info = await self.info() or await self._create()
        incarnation = self.incarnation(info)
        if not info.state.messages:
            return Tail(incarnation, info.state.last_seq, None)
        last = await self.event(incarnation, info.state.last_seq)
        if last is None:
            raise LogMoved("the stream was emptied while its end was read")
        return Tail(incarnation, info.state.last_seq, last.place)

    async def publish(self, tail: Tail, previous: Place, events: Sequence[Recorded]) -> Tail:
        """Append events after `tail`, `IN_FLIGHT` at a time; returns once all are on disk. Raises `LogMoved`."""
        revisions = [recorded.position.revision for recorded in events]
        marked = [
            (recorded, after != recorded.position.revision)
            for recorded, after in zip(events, [*revisions[1:], None], strict=True)
        ]
        start = 0
        while start < len(events):
            # Where an empty log begins is decided by its first event. Others sent with it would be taken after the
            # first ones of another relay, which begins elsewhere; once it has begun, all have the same to publish.
            end = start + (IN_FLIGHT if tail.place is not None else 1)
            tail = await self._publish(tail, previous, marked[start:end])
            assert tail.place is not None
            previous, start = tail.place, end
        return tail

    async def info(self) -> StreamInfo | None:
        """What NATS says of the stream, None where it is absent; raises `StoreDown` where it is not ours."""
        try:
            with translated():
                info = await self._manager().stream_info(self.name)
        except LogMoved:
            return None
        owner = (info.config.metadata or {}).get(_OWNER)
        if owner != self.log_id:
            raise StoreDown(
                f"the NATS stream {self.name} belongs to {owner or 'something else'}, this is {self.log_id};"
                " give this deployment another NATS account, or delete that stream"
            )
        return info

    async def event(self, incarnation: str, sequence: int) -> Stored | None:
        """The event at a sequence; None where the stream has no such message."""
        query = Query(sequence, 1, f"{subjects.root(self.log_id, incarnation)}.>")
        found = await self.fetch(query)
        return found[0] if found else None

    async def fetch(self, query: Query) -> list[Stored]:
        """The events that a query finds, in one replica, which may be a moment behind the others.

        Raises:
            StoreDamaged: a message is no event of this log.
        """
        messages = await fetch(self.connection.client, self.name, query, self.connection.settings.timeout_s)
        return [self._stored(message) for message in messages]

    async def next(self, sequence: int, selection: str) -> int | None:
        """The sequence of the first event from one on that a selection covers, by the word of the stream's leader."""
        with translated():
            try:
                found = await self._manager().get_msg(self.name, seq=sequence, subject=selection, next=True)
            except NotFoundError as error:
                if error.err_code == NO_MESSAGE:
                    return None
                raise
        return found.seq

    def _stored(self, message: Msg) -> Stored:
        headers = message.headers or {}
        revision, _, index = headers.get(PREVIOUS, "").partition(".")
        try:
            recorded = decode_event(self.log_id, message.data)
            return Stored(recorded, int(headers[SEQUENCE]), (int(revision), int(index)), LAST in headers)
        except ValueError as error:
            raise StoreDamaged(
                f"message {headers.get(SEQUENCE)} of the NATS stream {self.name} is no event of this log ({error});"
                " delete the stream: the relay fills it again from the segments"
            ) from error

    async def _publish(self, tail: Tail, previous: Place, events: Sequence[tuple[Recorded, bool]]) -> Tail:
        root = subjects.root(self.log_id, tail.incarnation)
        messages: list[Message] = []
        for recorded, last in events:
            headers = {
                Header.MSG_ID.value: f"{tail.incarnation}:{recorded.position}",
                Header.EXPECTED_STREAM.value: self.name,
                Header.EXPECTED_LAST_SEQUENCE.value: str(tail.sequence + len(messages)),
                PREVIOUS: f"{previous[0]}.{previous[1]}",
            }
            if last:
                headers[LAST] = "1"
            if recorded.context.traceparent:
                headers["traceparent"] = recorded.context.traceparent
            messages.append(Message(subjects.subject(root, recorded.stream), encode_event(recorded), headers))
            previous = recorded.position.revision, recorded.position.index
        try:
            with translated():
                sequences = await publish(self.connection.client, messages, self.connection.settings.timeout_s)
        except LogMoved as moved:
            await self._check_moved(tail, moved)
            raise
        for sequence, expected in zip(
            sequences, range(tail.sequence + 1, tail.sequence + len(messages) + 1), strict=True
        ):
            if sequence != expected:
                raise LogMoved(f"an event stands at sequence {sequence} of {self.name} already, expected {expected}")
        return Tail(tail.incarnation, tail.sequence + len(messages), previous)

    async def _check_moved(self, tail: Tail, moved: LogMoved) -> None:
        """Raise `StoreDown` where the log was not moved by anybody: the server has another end than its files."""
        info = await self.info()
        if info is not None and (self.incarnation(info), info.state.last_seq) == (tail.incarnation, tail.sequence):
            raise StoreDown(
                f"the NATS stream {self.name} ends at sequence {tail.sequence} and takes nothing after it ({moved}): a"
                " write to its disk has failed, and nats-server stays so; see its log, make room on its disk and"
                " restart it. Nothing is lost: commits wait in the outbox"
            ) from moved

    async def _create(self) -> StreamInfo:
        incarnation = secrets.token_hex(8)
        config = StreamConfig(
            name=self.name,
            description="distroml: the recent part of one deployment's event log; filled again when it is deleted",
            subjects=[f"{subjects.root(self.log_id, incarnation)}.>"],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            max_bytes=self._keep_bytes,
            num_replicas=self._replicas,
            allow_direct=True,
            deny_delete=True,
            deny_purge=True,
            metadata={_OWNER: self.log_id, _INCARNATION: incarnation},
        )
        try:
            with translated():
                await self._manager().add_stream(config)  # pyright: ignore[reportUnknownMemberType]
        except StreamExists:
            pass  # another relay was faster: its stream is as good
        info = await self.info()
        if info is None:
            raise LogMoved(f"the stream {self.name} was deleted while it was made")
        return info

    def incarnation(self, info: StreamInfo) -> str:
        """Which making of the stream this is; raises `StoreDown` where it was reconfigured."""
        found = (info.config.metadata or {}).get(_INCARNATION, "")
        if not found or info.config.subjects != [f"{subjects.root(self.log_id, found)}.>"]:
            raise StoreDown(
                f"the NATS stream {self.name} was reconfigured ({info.config.subjects}); delete it: the relay fills it"
                " again from the segments"
            )
        return found

    def _manager(self) -> JetStreamManager:
        client = self.connection.client
        return client.jsm(timeout=self.connection.settings.timeout_s)  # pyright: ignore[reportUnknownMemberType]
