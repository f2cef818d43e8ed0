"""The tail of the log: what any replica commits becomes known to the actors of this one."""

from __future__ import annotations

from typing import Final

import msgspec

from distroml.eventstore.draft import Header
from distroml.rendezvous.adapters.codec import STREAM_PREFIX
from distroml.rendezvous.adapters.members import PREFIX
from distroml.rendezvous.jobs import Jobs
from distroml.statestore import Compacted, StateStore

_PREFIX: Final = f"state/{STREAM_PREFIX}"
_HEADER: Final = ":@"


async def follow(states: StateStore, jobs: Jobs) -> None:
    """Tell the actors which version their stream has reached; runs until cancelled.

    It watches the headers of stored state, which are written with the events: no cursor of its own to keep.
    """
    while True:
        revision = (await states.list(PREFIX)).revision
        jobs.look_again()
        try:
            async for changes in states.watch(_PREFIX, after=revision):
                for change in changes:
                    _seen(jobs, change.key, change.value)
        except Compacted:
            continue


def _seen(jobs: Jobs, key: str, value: bytes | None) -> None:
    if value is not None and key.endswith(_HEADER):
        version = msgspec.json.decode(value, type=Header).version
        jobs.seen(key.removeprefix(_PREFIX).removesuffix(_HEADER), version)
