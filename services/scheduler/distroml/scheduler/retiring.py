"""Streams of jobs that ended a while ago leave the live state; everybody still finds the jobs by their ids."""

from __future__ import annotations

from distroml.rpc.retirement import Retirement, Seen
from distroml.scheduler.board import Board
from distroml.scheduler.domain.retirement import retires_at_ms
from distroml.scheduler.streams import JOB_PREFIX, Streams, job_stream


class JobRetirement(Retirement):
    """Looks at jobs on the board, and in the store at those that it has forgotten."""

    def __init__(self, streams: Streams, board: Board, *, after_s: int) -> None:
        super().__init__(streams.store, JOB_PREFIX, self._seen, after_s=after_s, retired=self._forget)
        self._streams, self._board, self._after_ms = streams, board, after_s * 1000

    async def _seen(self, stream: str) -> Seen:
        # The ledger first: who is over and not in it then gets no slot any more.
        await self._board.refresh()
        job = stream.removeprefix(JOB_PREFIX)
        known = self._board.entry(job)
        if known is not None:
            state, version = known.job, known.version
        else:
            draft = await self._streams.jobs.load(job_stream(job))
            state, version = draft.state, draft.version
        return Seen(version, retires_at_ms(state, self._board.ledger, self._after_ms))

    def _forget(self, stream: str) -> None:
        self._board.forget(stream.removeprefix(JOB_PREFIX))
