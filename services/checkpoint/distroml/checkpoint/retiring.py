"""Catalogues of jobs whose own stream was retired leave the live state; checkpoints stay, and are found as before."""

from __future__ import annotations

from typing import Final

from distroml.checkpoint.adapters.codecs import STREAMS, Repo
from distroml.checkpoint.domain.retirement import is_settled
from distroml.rpc.retirement import Retirement, Seen

JOBS: Final = "scheduler/job/"


def retirement(repository: Repo, *, after_s: int) -> Retirement:
    """Of the catalogues."""

    async def look(stream: str) -> Seen:
        draft = await repository.load(stream)
        return Seen(draft.version, 0 if is_settled(draft.state) else None)

    return Retirement(repository.store, STREAMS, look, after_s=after_s, follows=JOBS)
