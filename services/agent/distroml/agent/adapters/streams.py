"""What the long-lived streams to other services have in common."""

from __future__ import annotations

import asyncio


def heed_cancellation() -> None:
    """Go on only if this task was not asked to end.

    gRPC may turn the cancellation of a task that waits for a call into an error of that call; a loop that dials again
    after errors would then never end.

    Raises:
        asyncio.CancelledError: the task was asked to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
