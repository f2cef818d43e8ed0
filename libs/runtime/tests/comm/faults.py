"""What breaks a world, and what the ranks that are left see of it."""

from __future__ import annotations

import os
import signal
import threading
import time

import torch
import torch.distributed as dist

from distroml.runtime.elastic import heard, is_communication_error
from distroml.runtime.elastic.world import ProcessGroup

LIMIT_S = 4.0


def _error_of(action) -> dict[str, str]:
    try:
        action()
    except Exception as error:
        return {"kind": type(error).__name__, "text": str(error), "communication": str(is_communication_error(error))}
    return {"kind": "", "text": "nothing was raised", "communication": ""}


def _summed(group: ProcessGroup) -> None:
    """A sum that is looked at: on a GPU that is when its failure is known."""
    tensor = torch.ones(3, device=group.device)
    dist.all_reduce(tensor)
    heard(tensor)


def absent(group: ProcessGroup) -> dict[str, str]:
    """One rank does not come to a collective."""
    if dist.get_rank() == 1:
        time.sleep(LIMIT_S * 2)
        return {}
    return _error_of(lambda: _summed(group))


def absent_future(group: ProcessGroup) -> dict[str, str]:
    """As `absent`, for whoever waits for a future."""
    if dist.get_rank() == 1:
        time.sleep(LIMIT_S * 2)
        return {}
    future = dist.all_reduce(torch.ones(3), async_op=True).get_future()
    return _error_of(future.wait)


def cut(group: ProcessGroup) -> dict[str, str]:
    """Another thread severs the group while this one waits in it."""
    if dist.get_rank() == 1:
        time.sleep(LIMIT_S * 2)
        return {}
    threading.Timer(0.3, group.sever).start()
    return _error_of(lambda: _summed(group))


def killed(group: ProcessGroup) -> dict[str, str]:
    """A rank dies; the launcher sees to the others, or their communication does."""
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return _error_of(lambda: _summed(group))


def left(group: ProcessGroup) -> dict[str, str]:
    """A rank ends its program in the middle, as if all were well."""
    if dist.get_rank() == 1:
        raise SystemExit(0)
    return _error_of(lambda: _summed(group))


FAULTS = {function.__name__: function for function in (absent, absent_future, cut, killed, left)}
