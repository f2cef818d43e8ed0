"""Waits for collectives of Gloo that end though Gloo forgets them.

When a connection ends, Gloo tells whoever waits for a message that did not begin, and forgets the one that the
connection was in the middle of, sent or received (`Pair::signalException` in its tcp/pair.cc). No call frees such a
wait: it lasts as long as a collective may take, half an hour. Once this process's own connections have been cut for a
while nothing comes any more, and whoever waits goes on without it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from distroml.runtime.comm.backends.errors import CommunicationFailed
from distroml.runtime.comm.backends.port import in_vain

LOOK_S = 0.5
"""How often a wait looks whether it is in vain."""

# What torch says of a collective that goes on; of one that took too long Gloo says something else.
_NOT_YET = "Operation timed out!"


class Work(Protocol):
    """What is waited for."""

    def wait(self) -> bool:
        """Return when it is done; raises where it failed."""
        ...


class _Watched:
    def __init__(self, work: dist.Work) -> None:
        self._work = work

    def wait(self) -> bool:
        """As torch's; raises `CommunicationFailed` where the wait is in vain."""
        while True:
            try:
                return self._work.wait(timedelta(seconds=LOOK_S))
            except RuntimeError as error:
                if _NOT_YET not in str(error):
                    raise
            if why := in_vain():
                raise CommunicationFailed(why)


def watched(work: dist.Work | None, group: dist.ProcessGroup | None = None) -> Work | None:
    """`work`, a collective of `group` that is under way, so that no wait for it lasts for ever; None: the world's.

    Not for messages from rank to rank: Gloo ends all connections of a group where such a wait takes too long.
    """
    return _Watched(work) if work is not None and dist.get_backend(group) == "gloo" else work
