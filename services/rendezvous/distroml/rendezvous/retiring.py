"""Streams of jobs whose own stream was retired leave the live state, each with the job's fence."""

from __future__ import annotations

from typing import Final

from distroml.rendezvous.adapters.codec import STREAM_PREFIX, RendezvousRepository
from distroml.rendezvous.adapters.keys import fence_key
from distroml.rendezvous.domain.retirement import is_settled
from distroml.rpc.retirement import Retirement, Seen

JOBS: Final = "scheduler/job/"


def retirement(repository: RendezvousRepository, *, after_s: int) -> Retirement:
    """Of the streams of this service."""

    async def look(stream: str) -> Seen:
        draft = await repository.load(stream)
        fence = fence_key(stream.removeprefix(STREAM_PREFIX))
        return Seen(draft.version, 0 if is_settled(draft.state) else None, keys=(fence,))

    return Retirement(repository.store, STREAM_PREFIX, look, after_s=after_s, follows=JOBS)
