"""Errors of communication, told apart from the user's own."""

from __future__ import annotations

import torch.distributed as dist

# What Gloo and NCCL put into a plain RuntimeError when the other end is gone.
_SIGNS = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "Broken pipe",
    "Application timeout caused pair closure",
    "Timed out waiting",
    "wait timeout after",
    "Connection was likely closed",
    "failed to connect to remote",
    "ncclRemoteError",
    "ncclSystemError",
    "NCCL communicator was aborted",
    # An error of our own that crossed C++ on its way, as in a backward pass of DDP.
    "CommunicationFailed",
)


class PeerLost(Exception):
    """A rank of this generation cannot be reached any more: the generation is over for this process."""


class GenerationLeft(Exception):
    """This process was told that its generation is broken or over, outside of any communication."""


class NoGeneration(Exception):
    """No new generation formed in the time a survivor waits for one."""


def is_communication_error(error: BaseException) -> bool:
    """Whether `error` came from talking to other ranks, and so says nothing about the user's program."""
    if isinstance(error, PeerLost | GenerationLeft | dist.DistBackendError | dist.DistNetworkError):
        return True
    if isinstance(error, dist.DistStoreError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
