"""Ranks tell one another that their program ended: nobody waits long for one that cannot come, and MPI ends in order.

MPI_Finalize waits for every rank, for ever, and says nothing to one that waits in a collective for a rank which ended
its program, by `sys.exit` in the middle of training or by a loop that was shorter there. So each rank listens for a
message from every other one, from the start, and sends its own at its end.
"""

from __future__ import annotations

from typing import Any

# The highest tag that the standard promises; groups use lower ones.
TAG = 32767


class Farewell:
    """The messages of this process and to it; every call under the lock of `library`."""

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self._peers = [rank for rank in range(self._world.size) if rank != self._world.rank]
        # Posted before anybody can have sent: a message that comes is taken at once, and by nobody else.
        self._heard = {rank: self._world.Irecv((bytearray(1), 1, mpi.BYTE), rank, TAG) for rank in self._peers}
        self._gone: set[int] = set()
        self._said: list[Any] | None = None

    def gone(self) -> frozenset[int]:
        """Ranks whose programs have ended."""
        for rank in [rank for rank, request in self._heard.items() if request.Test()]:
            del self._heard[rank]
            self._gone.add(rank)
        return frozenset(self._gone)

    def say(self) -> None:
        """This program ends; repeatable."""
        if self._said is None:
            token = (bytearray(1), 1, self._mpi.BYTE)
            self._said = [self._world.Isend(token, rank, TAG) for rank in self._peers]

    def all_said(self) -> bool:
        """Whether all programs have ended, and know it of one another."""
        self.gone()
        self._said = [request for request in self._said or () if not request.Test()]
        return not self._said and not self._heard
