"""Groups of Gloo of a world that broke end on threads of their own.

A group waits at its end for its threads, and one of them may be in a wait that Gloo forgot (see `waits`): whoever let
go of the group last, in the middle of the next world, would stand still for as long as a collective may take.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, cast

import torch.distributed as dist

_POLL_S = 0.05
# That of the list, and that of the call which counts.
_OWN = 2


def outlive() -> None:
    """Keep every group that torch knows of until nobody else does."""
    for group in list(cast("Any", dist.distributed_c10d)._world.pg_map):
        threading.Thread(target=_end, args=([group],), name="distroml-group-end", daemon=True).start()


def _end(held: list[dist.ProcessGroup]) -> None:
    while sys.getrefcount(held[0]) > _OWN:
        time.sleep(_POLL_S)
    held.clear()
