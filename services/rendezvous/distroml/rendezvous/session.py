"""One joined agent: what it is still to be told, and how its stream ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.events import Rejection
from distroml.rendezvous.adapters.messages import standing
from distroml.rendezvous.domain import Rendezvous, Sender, speaker
from distroml.rpc.errors import ResourceExhausted

MAX_UNSENT = 256
"""Messages that an agent may be behind before its stream is ended; it joins again and is told where the job stands."""


class Session:
    """Iterate for the messages to send, in order; ends, or raises, after the last of them."""

    def __init__(self, sender: Sender, lease_ttl_s: int) -> None:
        self.sender = sender
        self._lease_ttl_s = lease_ttl_s
        self.leaving = False
        self._unsent: deque[pb.JoinResponse] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    def admit(self, state: Rendezvous) -> None:
        """Tell the agent that it is joined, and where the job stands."""
        self.accept(state)
        for response in standing(state, self.sender.node):
            self.tell(response)

    def accept(self, state: Rendezvous) -> None:
        """Answer a `join`."""
        accepted = pb.JoinAccepted(lease_ttl_s=self._lease_ttl_s, generation=state.number)
        self.tell(pb.JoinResponse(accepted=accepted))

    def tell(self, response: pb.JoinResponse) -> None:
        """Send `response` after what is unsent; one message too many ends the stream instead."""
        if self._ended:
            return
        if len(self._unsent) >= MAX_UNSENT:
            text = f"the agent left {MAX_UNSENT} messages unread; join again"
            self.end(ResourceExhausted("SlowReader", text, node=self.sender.node))
            return
        self._unsent.append(response)
        self._wake.set()

    def end(self, error: Exception | None = None) -> None:
        """End the stream once everything is sent, with `error` where one is given; the first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake.set()

    def check(self, state: Rendezvous) -> None:
        """End the stream where, in `state`, its agent speaks for the node no longer."""
        try:
            speaker(state, self.sender)
        except Rejection as rejection:
            self.end(None if self.leaving else rejection)

    async def __aiter__(self) -> AsyncIterator[pb.JoinResponse]:
        """What the agent is to be told, as it comes."""
        while True:
            while self._unsent:
                yield self._unsent.popleft()
            if self._ended:
                break
            self._wake.clear()
            await self._wake.wait()
        if self._error is not None:
            raise self._error


class Remembered:
    """The newest report ids that are done with, so that a repeat is acknowledged without a decision."""

    LIMIT = 4096

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def add(self, id: str) -> None:
        """Remember `id`, and forget the oldest one where there are too many."""
        self._ids[id] = None
        if len(self._ids) > self.LIMIT:
            del self._ids[next(iter(self._ids))]
